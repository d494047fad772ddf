"""POWER: meters behind one protocol, sampling in a process of their own, and the energy of phases.

    from edge_awq.power.base import MeterChoice
    from edge_awq.power.monitor import start_meter

    with start_meter(MeterChoice("auto")) as meter:
        meter.ready()                                  # a Source: what is measured; None without a meter
        idle_w = meter.measure_idle(5.0)               # after the engine is loaded
        started_ns = time.monotonic_ns()
        ...                                            # the work, its stream synchronised
        energy = meter.energy([(started_ns, time.monotonic_ns())])
        energy.energy_j, energy.above_idle_j, energy.problem

Every time is CLOCK_MONOTONIC in nanoseconds. A phase that is too short for the meter's interval can be repeated:
``energy`` takes the spans of all its repetitions together. What runs in the sampling process imports the standard
library and the meter's own package alone, so any interpreter that has jetson-stats can sample.
"""
