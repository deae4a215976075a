"""Speed and exactness of int8 graphs of one encoder."""
