package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/network/status/serve"
)

// documented is a status with a value in each key, as Documentation/api.md has it.
func documented() status.Status {
	s := nodes()["in-trouble"]
	s.Waiting = &status.Waiting{For: "lease", Reason: "lease 10.5.87.0/24 is held by worker-9 (192.0.2.19)", Since: before(10 * time.Minute)}
	s.Lease.Held, s.Lease.Reservation, s.Lease.Losses = true, true, 1
	s.Underlay = s.Underlay[:1]
	s.Underlay[0].Problem = "bond0.100 has no carrier"
	s.Underlay[0].Next = "eth1 198.51.100.11 when peers know of it"
	s.UnderlayMoves = 2
	s.Devices = s.Devices[1:]
	s.Devices[0].Right = true
	s.Peers.Returned, s.Peers.Displaced, s.Peers.Expired = 3, 1, 12
	s.Peers.Records = s.Peers.Records[:1]
	s.Store.Epoch, s.Store.Saved, s.Store.Outages = "Q2J7XK3MZ4", true, 1
	s.Store.Outage = &status.Outage{Since: before(10 * time.Minute), Failures: 580, Reason: "https://192.0.2.1:2379: connection refused"}
	s.Loop.PassTimes = status.Times{Count: 130, Sum: 0.061, Buckets: []status.Bucket{{Within: 0.001, Count: 128}}}
	s.Loop.Problems = []status.Problem{{Entry: "link ripstop.1", Reason: "an outside hand (NetworkManager, process 812) undid it 17 times", Fought: true, Foreign: true}}
	s.Loop.Findings, s.Loop.Dumps.Surprise, s.Loop.Dumps.Failed, s.Loop.Unread = 1, 1, 1, "kernel cannot be read: no buffer space available"
	s.Host.Settings = s.Host.Settings[:1]
	s.Host.Problem = "net.ipv4.ip_forward cannot be set"
	s.Host.Settings[0].Have, s.Host.Settings[0].Right, s.Host.Settings[0].PerInterface = 1, true, true
	s.Firewall.Problem, s.Firewall.Findings = "the kernel has no nftables", s.Firewall.Findings[:1]
	s.Firewall.Strangers = []status.Stranger{{Address: netip.MustParseAddr("198.51.100.7"), Packets: 17}}
	s.Conditions = []status.Condition{{Name: status.Forwarding, OK: true, Reason: "is only here to be seen", Since: before(10 * time.Minute)}}
	s.Ready = true
	return s
}

// documentedPage is a page of peers with a value in each key.
func documentedPage() status.Page {
	p := page()
	p.Backend, p.Continue = "vxlan", "10.5.3.0-24"
	p.Peers = p.Peers[1:2]
	p.Peers[0].Held = true
	p.Peers[0].Ways[0].MAC = "7e:ac:fd:3a:1c:7c"
	return p
}

// empties lists the keys that have no value in a value of the API.
func empties(path string, v reflect.Value) (out []string) {
	if _, ok := v.Interface().(interface{ MarshalText() ([]byte, error) }); ok || v.Kind() != reflect.Struct && v.Kind() != reflect.Slice && v.Kind() != reflect.Pointer {
		if v.IsZero() {
			return []string{path}
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return []string{path}
		}
		return empties(path, v.Elem())
	case reflect.Slice:
		if v.Len() == 0 {
			return []string{path}
		}
		return empties(path+"[]", v.Index(0))
	}
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		out = append(out, empties(path+"."+key, v.Field(i))...)
	}
	return out
}

// TestDocumentationHasEveryKey: Documentation/api.md shows an answer with each key that
// there is, and no other. -update writes it anew.
func TestDocumentationHasEveryKey(t *testing.T) {
	const file = "../../Documentation/api.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for path, value := range map[string]any{status.PathStatus: documented(), status.PathPeers: documentedPage()} {
		if without := empties("", reflect.ValueOf(value)); len(without) > 0 {
			t.Errorf("the example of %s has no value of %v: give it one in this test, and run it with -update", path, without)
		}
		body, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		begin := []byte(fmt.Sprintf("<!-- example of %s -->\n```json\n", path))
		_, rest, ok := bytes.Cut(text, begin)
		have, _, closed := bytes.Cut(rest, []byte("\n```\n"))
		if !ok || !closed {
			t.Fatalf("%s has no example of %s", file, path)
		}
		if *update {
			text = bytes.Replace(text, append(begin, have...), append(begin, body...), 1)
		} else if d := cmp.Diff(string(have), string(body)); d != "" {
			t.Errorf("%s, example of %s (-update writes it anew):\n%s", file, path, d)
		}
	}
	if *update {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append(status.Names, status.PathHealth, status.PathReady, status.PathMetrics, status.PathLogLevel) {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("%s does not say what %s is", file, name)
		}
	}
}

// answers are what a daemon says in a test.
type answers struct {
	now  status.Status
	page status.Page
}

func (s answers) Status() status.Status                           { return s.now }
func (s answers) Peers(context.Context, status.Query) status.Page { return s.page }
func (s answers) Beat(context.Context) error                      { return nil }

// daemon answers as a daemon does until the test ends, and gives its --run-dir.
func daemon(t *testing.T, s answers) (runDir string, level zap.AtomicLevel) {
	t.Helper()
	runDir, level = t.TempDir(), zap.NewAtomicLevel()
	server, err := serve.Open(serve.Options{Dir: runDir, Level: level, Log: zap.NewNop()}, s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return runDir, level
}

// strictly reads JSON that has no key of its own.
func strictly(text string, into any) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is more than one document")
	}
	return nil
}

// TestJSONIsTheAPIs: -o json gives what the daemon said, key by key, and all peers in
// one page.
func TestJSONIsTheAPIs(t *testing.T) {
	want := answers{documented(), documentedPage()}
	want.page.Continue = ""
	dir, _ := daemon(t, want)
	equal := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	out, err := ripstop(t, "status", "-o", "json", "--run-dir="+dir)
	var now status.Status
	if err = errors.Join(err, strictly(out, &now)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	now.Daemon.Beat, now.Daemon.LogLevel, now.Daemon.Listen, now.Daemon.ListenProblem = want.now.Daemon.Beat, want.now.Daemon.LogLevel, want.now.Daemon.Listen, want.now.Daemon.ListenProblem
	if d := cmp.Diff(want.now, now, equal, addr); d != "" {
		t.Errorf("status differs:\n%s", d)
	}
	out, err = ripstop(t, "peers", "-o", "json", "--run-dir="+dir)
	var p status.Page
	if err = errors.Join(err, strictly(out, &p)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := cmp.Diff(want.page, p, equal, addr); d != "" {
		t.Errorf("peers differ:\n%s", d)
	}
}

// TestLogLevelIsChangedByTheTool while the daemon runs.
func TestLogLevelIsChangedByTheTool(t *testing.T) {
	dir, level := daemon(t, answers{now: documented()})
	for _, step := range []struct{ args, says, is string }{
		{"", "info\n", "info"}, {"debug", "log level is debug\n", "debug"}, {"", "debug\n", "debug"}, {"error", "log level is error\n", "error"},
	} {
		out, err := ripstop(t, append([]string{"log-level", "--run-dir=" + dir}, strings.Fields(step.args)...)...)
		if err != nil || out != step.says || level.String() != step.is {
			t.Errorf("log-level %s: %q, %v, it is %s", step.args, out, err, level)
		}
	}
	if out, err := ripstop(t, "log-level", "--run-dir="+dir, "loud"); err == nil || !strings.Contains(err.Error(), "is none of debug, info, warn, error") || level.String() != "error" {
		t.Errorf("loud: %q, %v, it is %s", out, err, level)
	}
}
