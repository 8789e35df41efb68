"""What the tests share: where they run, which backends they run on, and how close a result must be."""
