"""The paper's four findings, measured: ``python -m vrga_ext reproduce``.

On the demo model without a download, on other models of its training script, or on a real
checkpoint with TextVQA questions and boxes. A :mod:`~vrga_ext.reproduce.tasks` task asks and
scores; :mod:`~vrga_ext.reproduce.measure` answers all its questions under one condition;
:mod:`~vrga_ext.reproduce.study` is the list of conditions; :mod:`~vrga_ext.reproduce.findings`
turns their outcomes into tables and into claims that hold or do not.
"""
