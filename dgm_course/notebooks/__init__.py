"""One source of a lecture, two editions: what ``python -m dgm_course build`` does.

``solutions/src/NN_name.py`` (jupytext py:percent) is the only file that people edit. From it come

* ``lectures/NN_name.ipynb``, the student edition: blanks, no hidden tests, no rubrics, no outputs, made by
  nbgrader's own preprocessors and therefore gradable by nbgrader;
* ``solutions/NN_name.ipynb``, the full edition, executed: the notebook that nbgrader calls the source, with
  its outputs.

Both carry the same cells under the same ids (``01-014``); what a student must not see is taken out *inside*
the cells. Module by module: ``source`` reads a lecture and expands its short cell tags, ``editions`` makes
the student edition and the bytes of a notebook, ``execution`` runs a notebook and looks at its outputs,
``build`` ties them to the files of a checkout.
"""
