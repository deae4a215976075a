"""Teachers and the students made from them: families, layers, shapes, importance, costs."""
