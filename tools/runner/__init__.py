"""Runs notebooks as tests: each in a fresh kernel of this Python, any failure reported so that it can be found.

The command is `tools/run_notebook.py`. A module here is about one thing:

    find         which notebooks are meant, in which order
    crew         many notebooks: some at a time, stopping, the summary
    notebook     a file that is read and judged, and what became of it
    execute      its cells in a kernel, through nbclient
    judge        what went wrong in a cell
    outputs      what a cell put out, as it is kept
    save         the notebook's file with its new outputs; its page
    strays       files that a notebook left behind
    process      a kernel's process, seen from the runner
    report       what is said: screen, verdicts, JUnit
    text         how text is shown

and in the process of each kernel

    supervisor   the process that is started: it forks the kernel and sees all that this starts die
    kernel       ipykernel's kernel, and its last words
    messages     held to a size on their way to the runner
    watch        which files are written

No private name of nbclient (0.10 and later) is used. What is overridden is public, and a test fails without it:
`output` and `process_message` (a message that makes no sense is dropped; the last words), the client's `is_alive`, its
shell channel. The rest are nbclient's own options: `timeout_func`, `on_cell_executed`, `allow_errors`, `iopub_timeout`.
"""
