"""A tiny multimodal model that shows the method's effects, with everything that made it.

``model/`` holds a ``Qwen2_5_VLForConditionalGeneration`` of 0.86 M parameters with its processor;
``tools/demo_model`` trained it from scratch on drawn pictures (:mod:`~vrga_ext.demo.scenes`)
and short texts (:mod:`~vrga_ext.demo.language`); :mod:`~vrga_ext.demo.run` is the command
``python -m vrga_ext demo``; and :mod:`vrga_ext.reproduce` measures it. It shows the mechanism, on a
toy; it says nothing about the size of the effect on a real checkpoint.
"""
