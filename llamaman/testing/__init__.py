"""What plugin authors and our own tests share: real engines, a tiny real model, contract suites."""
