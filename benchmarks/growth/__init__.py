"""What ten million runs do to a database, and to who asks it something."""
