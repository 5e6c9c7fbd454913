package etcdserver

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// childEnv marks a process as the child; its value is childOptions in JSON.
const childEnv = "RIPSTOP_ETCDSERVER_CHILD"

// readyFD is where the child writes [readyWord] or what went wrong.
const (
	readyFD   = 3
	readyWord = "ready"
)

// segmentBytes is the size of the files of etcd's log, of which it makes one in
// advance. Its own 64 MB are a lot to copy.
const segmentBytes = 4 << 20

// dataFolder is where etcd keeps its data, in Options.Dir.
const dataFolder = "data"

type childOptions struct {
	Dir              string
	Listen           string
	Advertise        string
	CertFile         string
	KeyFile          string
	ClientCAFile     string
	ClusterToken     string
	QuotaBytes       int64
	ElectionMs       uint
	AuthTokenSeconds uint
}

// RunIfChild runs etcd until SIGTERM and exits if this process was started by
// [Start]. Otherwise it returns at once.
func RunIfChild() {
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		return
	}
	ready := os.NewFile(readyFD, "ready")
	if err := runChild(text, ready); err != nil {
		_, _ = fmt.Fprint(ready, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runChild(text string, ready *os.File) error {
	var o childOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return fmt.Errorf("read options: %w", err)
	}
	cfg, err := o.config()
	if err != nil {
		return err
	}
	wal.SegmentSizeBytes = segmentBytes
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return fmt.Errorf("start etcd: %w", err)
	case <-stop:
		return nil
	}
	if _, err := fmt.Fprint(ready, readyWord); err != nil {
		return fmt.Errorf("tell the parent: %w", err)
	}
	if err := ready.Close(); err != nil {
		return fmt.Errorf("tell the parent: %w", err)
	}
	select {
	case <-stop:
	case err := <-e.Err():
		return err
	}
	return nil
}

// config is that of one member that starts fast and writes without care.
func (o childOptions) config() (*embed.Config, error) {
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(o.Dir, dataFolder)
	cfg.Logger, cfg.LogLevel, cfg.LogOutputs = "zap", "error", []string{"stderr"}
	// A kill loses what the kernel has not written only if the host dies too.
	cfg.UnsafeNoFsync = true
	cfg.BcryptCost = 4 // The least there is: passwords here are no secrets.
	cfg.TickMs, cfg.ElectionMs = 10, 100
	if o.ElectionMs != 0 {
		cfg.TickMs, cfg.ElectionMs = o.ElectionMs/10, o.ElectionMs
	}
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 10_000, 1_000
	cfg.StrictReconfigCheck = false
	cfg.QuotaBackendBytes = o.QuotaBytes
	if o.ClusterToken != "" {
		cfg.InitialClusterToken = o.ClusterToken
	}
	if o.AuthTokenSeconds != 0 {
		cfg.AuthTokenTTL = o.AuthTokenSeconds
	}
	// A restart comes within the time that closed connections linger.
	cfg.SocketOpts.ReuseAddress = true

	listen, err := url.Parse(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("client URL: %w", err)
	}
	advertise, err := url.Parse(o.Advertise)
	if err != nil {
		return nil, fmt.Errorf("advertised URL: %w", err)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*listen}, []url.URL{*advertise}
	// No member ever calls, so any free port does, and none need be known.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ClientTLSInfo = transport.TLSInfo{
		CertFile: o.CertFile, KeyFile: o.KeyFile,
		TrustedCAFile: o.ClientCAFile, ClientCertAuth: o.ClientCAFile != "",
	}
	return cfg, cfg.Validate()
}
