package lab

import (
	"fmt"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts a command in the namespace, in a process group of its own (a
// Ctrl-C at the terminal is for the lab alone). The process is killed when the
// lab dies. The caller waits for it as for any command.
//
// The kernel sends the signal of Pdeathsig when the *thread* that started the
// child ends, so that thread is kept until the child has ended.
func (ns *Namespace) Start(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go func() {
		_ = onThread(func() error {
			pid, err := ns.startHere(cmd)
			started <- err
			if err != nil {
				return nil
			}
			awaitEnd(pid)
			return nil
		})
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s in %s: %w", cmd.Path, ns.name, err)
	}
	return nil
}

func (ns *Namespace) startHere(cmd *exec.Cmd) (pid int, err error) {
	if err := ns.Enter(); err != nil {
		return 0, err
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// awaitEnd returns once the child has ended, and leaves it for others to reap.
func awaitEnd(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return // nil, or ECHILD: it was reaped first.
		}
	}
}
