package lab

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/doctor"
)

// toolPath is the ripstop that the tests built, on first use.
var toolPath = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(daemonPath), "ripstop")
	// As "make build" does, whose work then need not be done again.
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/ripstop-net/ripstop/cmd/ripstop")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build ripstop: %w\n%s", err, out)
	}
	return path, nil
})

// doctorArgs are those for a host of the lab, for the real program. CNI's folders are
// the host's own.
func doctorArgs(h *Host, more ...string) []string {
	return append([]string{
		"doctor", "-o", "json", "--env-file=" + filepath.Join(h.Dir, "none"), "--node-name=" + h.Name,
		"--run-dir=" + filepath.Join(h.Dir, "run"), "--state-dir=" + filepath.Join(h.Dir, "state"), "--subnet-file=" + h.SubnetFile(),
		"--etcd-endpoints=" + cmp.Or(h.StoreURL, h.lab.EtcdURL()), "--etcd-prefix=" + Prefix,
		"--cni-conf-dir=" + filepath.Join(h.Dir, "cni", "net.d"), "--cni-bin-dir=" + filepath.Join(h.Dir, "cni", "bin"),
	}, more...)
}

// diagnosis is what the doctor said.
type diagnosis struct {
	verdicts []doctor.Verdict
	code     int
	// took is how long it was at it, from its start to its end.
	took time.Duration
}

// diagnose runs the doctor on a host.
func diagnose(t *testing.T, h *Host, more ...string) diagnosis {
	t.Helper()
	path, err := toolPath()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, doctorArgs(h, more...)...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, withoutSettings(os.Environ())
	began := time.Now()
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	d := diagnosis{took: time.Since(began)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		d.code = exit.ExitCode()
	}
	if err := json.Unmarshal(out.Bytes(), &d.verdicts); err != nil {
		t.Fatalf("%s: %v: %s%s", h.Name, err, out.String(), errs.String())
	}
	return d
}

func line(v doctor.Verdict) string {
	return fmt.Sprintf("%s %s [%s %s]: %s (%s) do: %s", v.Severity, v.Check, v.Peer, v.Family, v.Summary, strings.Join(v.Evidence, "; "), strings.Join(v.Remedy, "; "))
}

// text has the verdicts that are worse than ok, a line each.
func (d diagnosis) text() string {
	var lines []string
	for _, v := range d.verdicts {
		if v.Severity > doctor.OK {
			lines = append(lines, line(v))
		}
	}
	return strings.Join(lines, "\n")
}

// names tells whether a verdict of a check, no lighter than a severity, has all the
// texts in it.
func (d diagnosis) names(check string, least doctor.Severity, texts ...string) bool {
	for _, v := range d.verdicts {
		all := v.Check == check && v.Severity >= least && len(v.Remedy)+len(v.Evidence) > 0
		for _, text := range texts {
			all = all && strings.Contains(line(v), text)
		}
		if all {
			return true
		}
	}
	return false
}

// isWell fails a test where the doctor finds anything on a host.
func isWell(t *testing.T, h *Host, when string) diagnosis {
	t.Helper()
	d := diagnose(t, h)
	if d.text() != "" || d.code != 0 {
		t.Errorf("%s, %s: exit code %d\n%s", when, h.Name, d.code, d.text())
	}
	return d
}
