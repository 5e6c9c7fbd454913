package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// fileRest is what keep has to itself after each announcement of the subnet file's.
	// Who writes the file without end is heard a hundred times a second, and what he does
	// meanwhile the kernel makes one announcement of (inotify(7): successive ones that
	// are the same).
	fileRest = 10 * time.Millisecond
	// hearAgain is after how long a node that hears nothing tries to again.
	hearAgain = 30 * time.Second
)

// hear wakes keep as soon as the kernel announces that something was done to the
// subnet file, until ctx ends, which returns nil. The folder is what is listened to,
// for a file that is replaced is another one. A folder may be replaced, too: so it
// begins anew whenever the file was put. Where the kernel has no room for it, keep is
// woken by looks alone, and that is said once.
func (k *keptFile) hear(ctx context.Context) error {
	var (
		w      *fsnotify.Watcher
		events <-chan fsnotify.Event
		errs   <-chan error
		again  <-chan time.Time
		said   bool
	)
	end := func() {
		if w != nil {
			_ = w.Close() // Nothing can be done about it, and nothing is lost.
		}
		w, events, errs, again = nil, nil, nil, nil
	}
	defer func() { end() }()
	folder := filepath.Dir(filepath.Clean(k.path))
	begin := func() {
		end()
		var err error
		if w, err = k.listen(folder); err != nil {
			w, again = nil, time.After(hearAgain)
			if errors.Is(err, fs.ErrNotExist) { // The folder went before it was listened to.
				k.wake()
				return
			}
			if !said {
				k.log.Warn("changes of the subnet file are not heard of: it is looked at each few seconds", zap.Error(err))
			}
			said = true
			return
		}
		events, errs = w.Events, w.Errors
		if said {
			k.log.Info("changes of the subnet file are heard of again")
		}
		said = false
		k.wake() // Nothing was heard meanwhile.
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.written:
			begin()
			continue
		case <-again:
			begin()
			continue
		case e, on := <-events:
			if name := filepath.Clean(e.Name); !on || name == folder {
				end() // It was deleted or moved away, and the file went with it.
				again = time.After(hearAgain)
			} else if name != filepath.Join(folder, filepath.Base(k.path)) {
				continue // Another file of the same folder.
			}
		case _, on := <-errs: // Too much happened at once: inotify(7), IN_Q_OVERFLOW.
			if !on {
				end()
				again = time.After(hearAgain)
			}
		}
		k.wake()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(fileRest):
		}
	}
}

// listenTo has the kernel announce what is done to a folder's files.
func listenTo(folder string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("listen to %s: %w", folder, err)
	}
	if err := w.Add(folder); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("listen to %s: %w", folder, err)
	}
	return w, nil
}
