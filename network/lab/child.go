package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/ripstop-net/ripstop/subnet/etcd"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// childEnv marks a process as the lab's helper and carries its task as JSON.
const childEnv = "RIPSTOP_LAB_CHILD"

// configTask is to write the network config to etcd. It is done by a process in
// the namespace: the etcd client dials from goroutines of its own, which would
// dial from outside.
type configTask struct {
	Endpoint, Config string
}

// RunIfChild must come first in main and in TestMain: the lab starts the
// running binary again as its etcd and as its helper. In such a process
// RunIfChild stands in for main and does not return.
func RunIfChild() {
	etcdserver.RunIfChild()
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	if err := runChild([]byte(text)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runChild(text []byte) error {
	var task configTask
	if err := json.Unmarshal(text, &task); err != nil {
		return fmt.Errorf("read the helper's task: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), childLimit)
	defer cancel()
	store, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{task.Endpoint}, Prefix: Prefix})
	if err != nil {
		return err
	}
	_, modified, err := store.Config(ctx)
	if err == nil {
		err = store.SetConfig(ctx, []byte(task.Config), modified)
	}
	return errors.Join(err, store.Close())
}

const childLimit = 30 * time.Second

// SetConfig writes the network config to the lab's etcd as it is, right or wrong.
func (l *Lab) SetConfig(ctx context.Context, config string) error {
	text, err := json.Marshal(configTask{Endpoint: l.EtcdURL(), Config: config})
	if err != nil {
		return fmt.Errorf("describe the helper's task: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, childLimit+time.Second)
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = &said
	if err := l.etcdNS.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil { // It was killed for that.
			err = ctx.Err()
		}
		return fmt.Errorf("write the network config to the lab's etcd: %w%s", err, lastWords(said.Bytes()))
	}
	return nil
}

// lastWords is what a process said, to be put behind an error.
func lastWords(said []byte) string {
	if said = bytes.TrimSpace(said); len(said) == 0 {
		return ""
	}
	return ": " + string(said)
}
