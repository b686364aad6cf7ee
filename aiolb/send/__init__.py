"""What a publisher is made of: its settings, its sockets, and interchangeable senders."""
