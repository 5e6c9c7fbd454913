package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// downLimit is how long a lab is given to take itself away.
const downLimit = 40 * time.Second

func newDown(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take a lab away, or what a crashed one left",
		Example: `  ripstop-lab down
  ripstop-lab down --name second`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return down(cmd.Context(), cmd.OutOrStdout(), at) },
	}
}

func down(ctx context.Context, out io.Writer, at *place) error {
	if err := needRoot(); err != nil {
		return err
	}
	s, err := at.running()
	if errors.Is(err, errNotUp) {
		return clearStale(out, at, err)
	}
	if err != nil {
		return err
	}
	if err := endProcess(ctx, s); err != nil {
		return err
	}
	say(out, "Lab %q was taken away.\n", at.name)
	return nil
}

// clearStale removes the folder of a lab that crashed. All else of it went with
// its process.
func clearStale(out io.Writer, at *place, notUp error) error {
	if _, err := os.Stat(at.folder()); err != nil {
		return notUp
	}
	release, err := at.take()
	if err != nil {
		return err // It is just coming up, or going.
	}
	defer release()
	if err := os.RemoveAll(at.folder()); err != nil {
		return fmt.Errorf("remove the folder of a crashed lab: %w", err)
	}
	say(out, "Lab %q had crashed; its folder was removed.\n", at.name)
	return nil
}

// endProcess sends SIGTERM to the lab's process and waits for its end. The
// process is held by a pidfd before its start time is compared again, so that
// no other process gets the signal.
func endProcess(ctx context.Context, s state) error {
	fd, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", s.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if started, err := startTime(s.PID); err != nil || started != s.Started {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send SIGTERM to process %d: %w", s.PID, err)
	}
	for deadline := time.Now().Add(downLimit); time.Now().Before(deadline); {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		const slice = 100 // Milliseconds; ctx is looked at in between.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, slice)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", s.PID, err)
		}
	}
	return fmt.Errorf("the lab's process %d is still there %s after SIGTERM: look at it, or kill it with 'kill -9 %d', which takes all of the lab with it", s.PID, downLimit, s.PID)
}
