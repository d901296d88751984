"""The embedded compositional data sets: scenes of the icons' own drawings, with captions that name all they show."""
