package network

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/status"
)

// Pauses after the subnet file was put back, for the sake of who fights for it.
// They double from the first to the longest, and begin anew after fileCalm without
// a need.
const (
	firstFilePause   = time.Second
	longestFilePause = 30 * time.Second
	fileCalm         = time.Minute
)

// keptFile is the subnet file. Another hand's change of it is announced by the kernel
// (hear), and found by whoever has a status made, which the daemon itself does each few
// seconds, and undone by keep.
type keptFile struct {
	path string
	log  *zap.Logger
	// found has something when the file may not be as it was put, written after it was
	// put.
	found, written chan struct{}
	// listen is listenTo, but in tests.
	listen func(folder string) (*fsnotify.Watcher, error)

	mu sync.Mutex
	// want is what the file says once it is put, as reading gives it.
	want envfile.Env
	put  bool
	// unwritten says why it could not be put back.
	unwritten string
	restored  uint64
}

func newKeptFile(path string, log *zap.Logger) *keptFile {
	return &keptFile{path: path, log: log, found: make(chan struct{}, 1), written: make(chan struct{}, 1), listen: listenTo}
}

// wake has keep look at the file.
func (k *keptFile) wake() { poke(k.found) }

// poke leaves word in a channel that holds one, unless there is some already.
func poke(word chan<- struct{}) {
	select {
	case word <- struct{}{}:
	default:
	}
}

// write puts the file in place. What it says is kept from then on.
func (k *keptFile) write(env envfile.Env) error {
	want, err := envfile.Parse(env.Bytes())
	if err != nil {
		return fmt.Errorf("subnet file: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := env.Write(k.path); err != nil {
		return err
	}
	k.want, k.put, k.unwritten = want, true, ""
	poke(k.written)
	return nil
}

// status tells how the file is and what is wrong with it, "" for nothing. Where it
// is not as it was put, keep is woken.
func (k *keptFile) status() (now status.File, problem string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now = status.File{Path: k.path, Restored: k.restored}
	if !k.put {
		return now, "it is not written yet"
	}
	if problem = k.amiss(); problem == "" {
		k.unwritten = ""
		return now, ""
	}
	if k.unwritten != "" {
		problem += ", and cannot be put back: " + k.unwritten
	}
	k.wake()
	return now, problem
}

// amiss tells what is wrong with the file, "" for nothing. It is for the holder of
// mu.
func (k *keptFile) amiss() string {
	have, err := envfile.Read(k.path)
	switch {
	case err != nil:
		return err.Error()
	case have == k.want:
		return ""
	case have == envfile.Env{}:
		return k.path + " is gone or empty"
	case have.Subnets != k.want.Subnets:
		return fmt.Sprintf("%s was overwritten by another: it has %s", k.path, have.Subnets)
	}
	return k.path + " was changed by another"
}

// keep puts the file back as it was put whenever it is woken and that is not so, until
// ctx ends, which returns nil. It does not look of itself.
func (k *keptFile) keep(ctx context.Context) error {
	var last, said time.Time
	pause := firstFilePause
	for unsaid := uint64(0); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-k.found:
		}
		what, err := k.restore()
		if what == "" {
			continue
		}
		now := time.Now()
		if pause = min(2*pause, longestFilePause); now.Sub(last) > fileCalm {
			pause = firstFilePause
		}
		last = now
		switch {
		case err != nil: // The status has it, and says why.
		case now.Sub(said) > fileCalm:
			k.log.Warn("subnet file is put back, as another hand changed it", zap.String("was", what), zap.Uint64("times", unsaid+1))
			said, unsaid = now, 0
		default:
			unsaid++
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// restore puts the file back where it is not as it was put, and tells what was
// wrong with it, "" for nothing.
func (k *keptFile) restore() (what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if what = k.amiss(); what == "" {
		return "", nil
	}
	before := k.unwritten
	k.unwritten = ""
	if err = k.want.Write(k.path); err != nil {
		if k.unwritten = err.Error(); k.unwritten != before {
			k.log.Error("subnet file cannot be put back: tried again", zap.String("was", what), zap.Error(err))
		}
		return what, err
	}
	k.restored++
	poke(k.written)
	return what, nil
}
