"""One HTML file about one run or several: sizes, the layer map, curves, configuration, tables; nothing else needed."""

from diminuendo.report.layer_map import layer_map
from diminuendo.report.page import Table
from diminuendo.report.write import write_report

__all__ = ["Table", "layer_map", "write_report"]
