// Package cnifiles puts the CNI plugin and the list that names it where container
// runtimes look for them, and takes the list away.
package cnifiles

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/renameio/v2"
	"go.uber.org/zap"
)

const (
	// ListName is that of the list's file. Runtimes take the first by name.
	ListName = "10-ripstop.conflist"
	// PluginName is that of the plugin's program.
	PluginName = "ripstop-cni"
	// DefaultConfDir is where runtimes look for lists.
	DefaultConfDir = "/etc/cni/net.d"
	// writer is the value of the list's key writtenBy, by which it is known as ours.
	// Runtimes pass over keys that they do not know.
	writer = "ripstopd"
	// mostList bounds a list that is read, in bytes.
	mostList = 1 << 20
)

// ErrForeign means that a list stands in the way that no daemon of ours wrote.
var ErrForeign = errors.New("CNI list of the same name was not written by ripstopd")

// Options say what goes where.
type Options struct {
	// ConfDir receives the list, BinDir the plugin; "" leaves it out.
	ConfDir, BinDir string
	// Plugin is the program that is copied.
	Plugin string
	// SubnetFile and RunDir are the daemon's.
	SubnetFile, RunDir string
}

// Asked tells whether there is anything to do.
func (o Options) Asked() bool { return o.ConfDir != "" || o.BinDir != "" }

// Check says what is wrong with the options, before anything waits for the files.
func (o Options) Check() error {
	for flag, dir := range map[string]string{"cni-conf-dir": o.ConfDir, "cni-bin-dir": o.BinDir} {
		if dir != "" && !filepath.IsAbs(dir) {
			return fmt.Errorf("--%s: %q is no absolute path", flag, dir)
		}
	}
	if o.BinDir == "" {
		return nil
	}
	info, err := os.Stat(o.Plugin)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no file")
	}
	if err != nil {
		return fmt.Errorf("--cni-bin-dir: the plugin that is to be copied must lie beside ripstopd: %w", err)
	}
	return nil
}

type list struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	WrittenBy  string   `json:"writtenBy"`
	Plugins    []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	SubnetFile   string          `json:"subnetFile,omitempty"`
	RunDir       string          `json:"runDir,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
}

// List is the list's text. The standard plugin portmap stands behind ours where it
// is found beside it.
func (o Options) List() ([]byte, error) {
	l := list{
		CNIVersion: "1.0.0", Name: "pods", WrittenBy: writer,
		Plugins: []plugin{{Type: PluginName, SubnetFile: o.SubnetFile, RunDir: o.RunDir}},
	}
	if o.BinDir != "" {
		info, err := os.Stat(filepath.Join(o.BinDir, "portmap"))
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			l.Plugins = append(l.Plugins, plugin{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}})
		}
	}
	text, err := json.MarshalIndent(l, "", "  ")
	return append(text, '\n'), err
}

// Install puts the plugin and then the list in place, each whole. What is there
// already is not written again; a list that is not ours stays and is [ErrForeign].
func (o Options) Install() error {
	if o.BinDir != "" {
		program, err := os.ReadFile(o.Plugin)
		if err != nil {
			return fmt.Errorf("read the CNI plugin: %w", err)
		}
		if err := put(filepath.Join(o.BinDir, PluginName), program, 0o755); err != nil {
			return fmt.Errorf("install the CNI plugin: %w", err)
		}
	}
	if o.ConfDir == "" {
		return nil
	}
	text, err := o.List()
	if err != nil {
		return fmt.Errorf("write the CNI list: %w", err)
	}
	path := filepath.Join(o.ConfDir, ListName)
	if ours, err := Ours(path); err == nil && !ours {
		return fmt.Errorf("%w: %s", ErrForeign, path)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := put(path, text, 0o644); err != nil {
		return fmt.Errorf("install the CNI list: %w", err)
	}
	return nil
}

// put replaces a file whole where it differs, and makes its folder.
func put(path string, text []byte, mode os.FileMode) error {
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm() == mode && info.Size() == int64(len(text)) {
		if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, text) {
			return nil
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// It is renamed within its folder: containerd's watch of that goes by names that are
	// renamed away, and passes over those that come (go-cni's netConfSyncer), so that a
	// file from elsewhere would not be noticed before containerd's next start.
	return renameio.WriteFile(path, text, mode, renameio.IgnoreUmask(), renameio.WithTempDir(filepath.Dir(path)))
}

// Ours tells whether a list was written by a daemon of ours. One that is not there
// is [fs.ErrNotExist]; one that cannot be understood is somebody else's.
func Ours(path string) (bool, error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, fmt.Errorf("read the CNI list: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > mostList {
		return false, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return false, fmt.Errorf("read the CNI list: %w", err)
	}
	var l list
	return json.Unmarshal(text, &l) == nil && l.WrittenBy == writer, nil
}

// longestPause is the longest between two tries.
const longestPause = time.Minute

// Run installs once ready is closed. What fails is logged once, and tried again until
// it is done or ctx ends, which returns nil: pods that are there need neither file.
func (o Options) Run(ctx context.Context, ready <-chan struct{}, log *zap.Logger) error {
	if !o.Asked() {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-ready:
	}
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = longestPause
	told := false
	for {
		err := o.Install()
		if err == nil {
			log.Info("CNI plugin and list are in place", zap.String("conf_dir", o.ConfDir), zap.String("bin_dir", o.BinDir))
			return nil
		}
		if !told {
			told = true
			log.Error("CNI plugin or list is not in place: trying again", zap.Error(err))
		}
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}
