"""Model and data to moments: the only code that imports TensorFlow or Keras, and that inside functions.

`ckpt_doctor.capture.runtime` imports TensorFlow, the front doors (`meta_graph_door`, `keras_door`) turn a model into a
`Program`, `data` reads what is fed to it, and `engine` runs it level by level.
"""
