"""Where processes run, whatever they do.

`base` is what a launcher must be able to do, `local` and `slurm` are two. `queue` does things of
`work` by one of them, on the GPUs of this machine that `devices` deals out; `cause` reads why a
process ended, `board` is what people see.
"""
