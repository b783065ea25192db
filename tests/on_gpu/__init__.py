"""What is measured on a machine with a GPU that has no network, in the minutes when there is one.

``make gpu-wheels`` gathers what such a machine lacks (`on_gpu.wheels`), ``make gpu`` runs the plan
there (`on_gpu.plan`): stage after stage, each a process of its own with a time limit. Figures are
written as they come (`on_gpu.record`), so that nothing is lost by what fails or hangs after them.
"""
