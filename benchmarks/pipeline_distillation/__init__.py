"""What teaching a pipeline gives, and what it costs."""
