//go:build packages

package lab

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestRealGettingStartedMakesPodsThatTalk: what the page has for machines without a
// container runtime works as it stands there, by the real ip.
func TestRealGettingStartedMakesPodsThatTalk(t *testing.T) {
	page, err := os.ReadFile("../../Documentation/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	recipe := regexp.MustCompile("(?s)```sh\n(\\. /run/flannel/subnet\\.env\n.*?)ip netns exec pod ping [^\n]*\n```").FindSubmatch(page)
	if recipe == nil {
		t.Fatal("the page has no such commands")
	}
	l := startLab(t, Options{Nodes: 2, Mode: IPv4, NoPods: true})
	name := func(h *Host) string { return "ripstop-page-" + h.Name }
	var pods []string
	for _, h := range l.Hosts {
		// The hosts share this machine's names of namespaces.
		text := regexp.MustCompile(`\bpod\b`).ReplaceAllString(string(recipe[1]), name(h))
		text = strings.ReplaceAll(text, "/run/flannel/subnet.env", h.SubnetFile())
		t.Cleanup(func() { shell(t, h, "ip netns delete "+name(h)) })
		shell(t, h, text)
		pods = append(pods, strings.TrimSpace(shell(t, h, ". "+h.SubnetFile()+"; echo ${FLANNEL_SUBNET%.*}.9")))
	}
	for i, h := range l.Hosts {
		// The other pod refuses a connection to a port that nobody has: it answers.
		out := shell(t, h, "ip netns exec "+name(h)+" timeout 10 bash -c '</dev/tcp/"+pods[1-i]+"/9' 2>&1 || true")
		if !strings.Contains(out, "refused") {
			t.Errorf("the pod on %s gets no answer from %s: %s", h.Name, pods[1-i], out)
		}
	}
}
