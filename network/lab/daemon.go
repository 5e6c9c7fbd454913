package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits on waiting for a daemon.
const (
	readyLimit = time.Minute
	stopLimit  = 20 * time.Second
	pollEvery  = 20 * time.Millisecond
)

// daemon is one run of ripstopd.
type daemon struct {
	cmd     *exec.Cmd
	logFile string
	// logStart is where this run's lines begin in the log, in bytes.
	logStart int64
	// again means that the subnet file was there before, so that it says
	// nothing about this run.
	again bool
	done  chan struct{} // Closed once the process has ended; then cmd.ProcessState is set.
}

// startDaemon starts a program in a namespace with its output appended to a
// log file.
func startDaemon(ns *Namespace, logFile string, again bool, path string, args ...string) (*daemon, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open a daemon's log: %w", err)
	}
	defer func() { _ = log.Close() }() // The child has its own copy.
	at, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("open a daemon's log: %w", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = withoutSettings(os.Environ())
	d := &daemon{cmd: cmd, logFile: logFile, logStart: at, again: again, done: make(chan struct{})}
	if err := ns.Start(cmd); err != nil {
		return nil, err
	}
	go func() {
		defer close(d.done)
		_ = cmd.Wait() // What it has to say is in ProcessState.
	}()
	return d, nil
}

// withoutSettings leaves out what this machine's own ripstopd may be set to.
func withoutSettings(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "RIPSTOPD_") })
}

// waitReady returns once the daemon has written its subnet file or, where that
// was there before, says in its log that it is ready.
func (d *daemon) waitReady(ctx context.Context, subnetFile string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("not ready after %s", readyLimit))
	defer cancel()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		if d.isReady(subnetFile) {
			return nil
		}
		select {
		case <-poll.C:
		case <-d.done:
			return fmt.Errorf("ended before it was ready: %s%s", d.cmd.ProcessState, d.tail())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w%s", subnetFile, context.Cause(ctx), d.tail())
		}
	}
}

func (d *daemon) isReady(subnetFile string) bool {
	if !d.again {
		_, err := os.Stat(subnetFile)
		return err == nil
	}
	return bytes.Contains(d.said(), []byte(`"msg":"ready"`))
}

// stop sends a signal and waits for the end.
func (d *daemon) stop(ctx context.Context, sig unix.Signal) (*os.ProcessState, error) {
	if err := d.cmd.Process.Signal(syscall.Signal(sig)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("send %s: %w", sig, err)
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-d.done:
		return d.cmd.ProcessState, nil
	case <-limit.C:
		return nil, fmt.Errorf("still there %s after %s%s", stopLimit, sig, d.tail())
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// end stops it, by force if need be, which is an error: a daemon heeds SIGTERM.
func (d *daemon) end() error {
	_, err := d.stop(context.Background(), unix.SIGTERM)
	if err != nil {
		_ = d.cmd.Process.Signal(unix.SIGQUIT) // A Go program then logs what it was doing.
		quit := time.NewTimer(time.Second)
		defer quit.Stop()
		select {
		case <-d.done:
		case <-quit.C:
			_ = d.cmd.Process.Kill()
			<-d.done
		}
	}
	return err
}

// said is what this run has logged.
func (d *daemon) said() []byte {
	text, err := os.ReadFile(d.logFile)
	if err != nil || int64(len(text)) < d.logStart {
		return nil
	}
	return text[d.logStart:]
}

// tail is the end of this run's log, for an error's text.
func (d *daemon) tail() string {
	const most = 10
	lines := strings.Split(strings.TrimSpace(string(d.said())), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return fmt.Sprintf("; %s is empty", d.logFile)
	}
	return fmt.Sprintf("; the end of %s:\n  %s", d.logFile, strings.Join(lines[max(0, len(lines)-most):], "\n  "))
}
