"""Live demos: sliders beside a picture that follows them. ``from dgm_course.demos import phase_diagram``."""
