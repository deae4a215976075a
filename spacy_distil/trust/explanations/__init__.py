"""Which tokens made a pipeline say this class, this entity, this tag."""
