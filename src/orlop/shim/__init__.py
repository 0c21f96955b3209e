"""The supervisor: one process per (daemon address, namespace) that holds the tasks of all its containers.

It is a containerd shim, `containerd-shim-orlop-v1`, which groups: every container of a namespace is served by the same
process. It imports little (stdlib, protobuf, `orlop.ttrpc`), and all of it at start, so that package files replaced
under a running supervisor do not matter.

| Module | What |
|---|---|
| `bootstrap` | the program's commands: start, delete, -info; election; becoming a daemon |
| `supervisor` | the process: event loop, socket, adoption, idle end |
| `service` | the shim protocol: `containerd.task.v2.Task` and `v3.Task`, same handlers |
| `task`, `process` | a container's task and its processes: states, exits, events in order |
| `stdio`, `console`, `pump`, `keeper` | where input comes from and output goes to, and what keeps it beyond a crash |
| `runtime`, `choice`, `spawn` | driving runc or crun; which of them; starting child processes |
| `checkpoint` | dumping a container and restoring it |
| `reaper` | the one place that waits for children |
| `records`, `adoption` | what lies on disk about processes, and taking over from a supervisor that was killed |
| `events`, `oom`, `cgroup`, `metrics` | publishing events; memory exhaustion; pids and statistics |
| `paths` | where sockets, locks and records lie |

docs/supervisor.md tells the protocol between daemon and supervisor.
"""
