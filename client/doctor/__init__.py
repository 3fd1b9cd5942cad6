"""What `zmqrt doctor` looks at. The `probe_` modules gather facts and judge nothing; all others judge facts and look at
nothing. `rounds.py` brings the two together, `view.py` shows what came of it.
"""
