//go:build runtime

package trials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// trialTag is the image's for this test.
const trialTag = "ripstop:trial"

// manifest reads one document of the manifests.
func manifest[T any](t *testing.T, file string, document int) (out T) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../kubernetes", file))
	if err == nil {
		err = yaml.UnmarshalStrict(bytes.Split(text, []byte("\n---\n"))[document], &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// layout is what of a node's a pod of the manifests meets.
type layout struct {
	node string
	// folders are those of this machine that stand for the node's, by their path there;
	// secret and network have the files of the volumes of these kinds.
	folders         map[string]string
	secret, network string
	settings        map[string]string
}

// flags starts a pod's only container as the kubelet would, by docker's flags.
func (l layout) flags(t *testing.T, pod corev1.PodSpec, group string) []string {
	t.Helper()
	c := pod.Containers[0]
	s := c.SecurityContext
	if !pod.HostNetwork || *s.Privileged || *s.AllowPrivilegeEscalation || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Fatalf("this test does not lay out such a pod: %+v", pod)
	}
	flags := []string{"--network=host", "--security-opt=no-new-privileges", "--cgroup-parent=" + group}
	if *s.ReadOnlyRootFilesystem {
		flags = append(flags, "--read-only")
	}
	for _, capability := range s.Capabilities.Drop {
		flags = append(flags, "--cap-drop="+string(capability))
	}
	for _, capability := range s.Capabilities.Add {
		flags = append(flags, "--cap-add="+string(capability))
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil || e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
			t.Fatalf("this test does not know the variable %+v", e)
		}
		flags = append(flags, "--env="+e.Name+"="+l.node)
	}
	for name, value := range l.settings {
		flags = append(flags, "--env="+name+"="+value)
	}
	for _, m := range c.VolumeMounts {
		at := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		source := ""
		switch v := pod.Volumes[at]; {
		case v.Secret != nil:
			source = l.secret
		case v.ConfigMap != nil:
			source = l.network
		case v.HostPath != nil:
			source = l.folders[v.HostPath.Path]
		}
		if source == "" {
			t.Fatalf("this test has nothing for the volume %s", m.Name)
		}
		volume := source + ":" + m.MountPath
		if m.ReadOnly {
			volume += ":ro"
		}
		flags = append(flags, "--volume="+volume)
	}
	if len(c.Command) > 0 {
		flags = append(flags, "--entrypoint="+c.Command[0])
	}
	flags = append(flags, trialTag)
	if len(c.Command) > 1 {
		flags = append(flags, c.Command[1:]...)
	}
	return append(flags, c.Args...)
}

// secureStore runs an etcd beside the lab's own that takes only clients with a
// certificate, and returns its URL and a folder as a Secret's volume has them.
func secureStore(t *testing.T, l *lab.Lab) (url, secret string) {
	t.Helper()
	dir := t.TempDir()
	authority, err := etcdserver.NewAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	address := l.EtcdAddress(l.Families()[0]).String()
	cert, key, err := authority.Issue("etcd", address)
	if err != nil {
		t.Fatal(err)
	}
	server := etcdserver.ForTest(t, etcdserver.Options{
		ListenClientURL: "https://" + netip.AddrPortFrom(netip.MustParseAddr(address), 2479).String(),
		CertFile:        cert, KeyFile: key, ClientCAFile: authority.CAFile,
		Run: l.EtcdNamespace().Start,
	})
	clientCert, clientKey, err := authority.Issue("ripstop")
	if err != nil {
		t.Fatal(err)
	}
	secret = t.TempDir()
	for name, from := range map[string]string{"ca.crt": authority.CAFile, "tls.crt": clientCert, "tls.key": clientKey} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(secret, name), text, 0o400)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return server.URL(), secret
}

// The image that "make image" builds by a real engine does on a host what the manifests
// start it for: the job writes the network config, the daemon becomes ready with nothing
// but its capabilities, a root that it cannot write to and etcd's certificates from a
// Secret; it reaches another node; and when it is told to stop, and another takes its
// place as in a rolling update, no ping is lost.
func TestImage(t *testing.T) {
	l := startLab(t, lab.Options{Nodes: 2, Mode: lab.IPv4, NoPods: true})
	url, secret := secureStore(t, l)
	h, other := l.Hosts[0], l.Hosts[1]
	// It neither makes a bridge nor writes rules, although it could: the host is the lab's.
	e := startDocker(t, h, controlGroup(t), "dockerd", "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false")
	e.do(t, "make", "-C", "../..", "image", "IMAGE="+trialTag)
	size := e.do(t, "docker", "image", "inspect", "--format", "{{.Size}}", trialTag)
	t.Logf("the image has %s bytes", size)

	set, job := manifest[appsv1.DaemonSet](t, "daemonset.yaml", 0), manifest[batchv1.Job](t, "network.yaml", 1)
	settings := manifest[corev1.ConfigMap](t, "settings.yaml", 0).Data
	for _, name := range []string{"RIPSTOPD_ETCD_ENDPOINTS", "RIPSTOP_ETCD_ENDPOINTS"} {
		settings[name] = url
	}
	out := layout{node: h.Name, secret: secret, network: t.TempDir(), settings: settings, folders: map[string]string{
		"/run/ripstop": filepath.Join(h.Dir, "run"), "/run/flannel": h.Dir, "/var/lib/ripstop": filepath.Join(h.Dir, "state"),
		"/opt/cni/bin": filepath.Join(h.Dir, "bin"), "/etc/cni/net.d": filepath.Join(h.Dir, "net.d"),
	}}
	for _, folder := range out.folders {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range manifest[corev1.ConfigMap](t, "network.yaml", 0).Data {
		if err := os.WriteFile(filepath.Join(out.network, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if said := e.do(t, "docker", append([]string{"run", "--rm"}, out.flags(t, job.Spec.Template.Spec, e.group)...)...); !strings.Contains(said, "10.5.0.0/16") {
		t.Logf("the job says %q", said)
	}
	startByHand(t, other, url, secret)
	start := func() {
		t.Helper()
		e.do(t, "docker", append([]string{"run", "--detach", "--name=ripstopd"}, out.flags(t, set.Spec.Template.Spec, e.group)...)...)
	}
	pod := set.Spec.Template.Spec.Containers[0]
	began := time.Now()
	start()
	t.Cleanup(func() {
		if t.Failed() {
			logs, err := e.command(context.Background(), "docker", "logs", "ripstopd").CombinedOutput()
			t.Logf("log of the container: %v\n%s", err, logs)
		}
	})
	ready := func() bool { return probed(h, pod.ReadinessProbe) }
	eventually(t, 30*time.Second, "the container is ready", ready)
	t.Logf("ready %s after docker run", time.Since(began).Round(10*time.Millisecond))
	if !probed(h, pod.LivenessProbe) {
		t.Error("a ready daemon does not pass the liveness probe")
	}
	for _, path := range []string{"bin/ripstop-cni", "net.d/10-ripstop.conflist"} {
		eventually(t, time.Minute, path+" is on the node", func() bool { _, err := os.Stat(filepath.Join(h.Dir, path)); return err == nil })
	}
	// As the operator does by kubectl exec.
	if said := e.do(t, "docker", "exec", "ripstopd", "/usr/bin/ripstop", "status"); !strings.Contains(said, "ready") {
		t.Errorf("ripstop status in the container says\n%s", said)
	}

	from, to := onlyAddress(t, h, h.SubnetFile()), onlyAddress(t, other, other.SubnetFile())
	eventually(t, time.Minute, "the nodes' subnets reach each other", func() bool {
		_, err := lab.Ping(t.Context(), h.Namespace, from, to, lab.PingOptions{Timeout: 200 * time.Millisecond})
		return err == nil
	})
	pinger, err := lab.StartPinger(t.Context(), h.Namespace, from, to, 100, lab.PingOptions{})
	if err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	e.do(t, "docker", "stop", "--time", fmt.Sprint(*set.Spec.Template.Spec.TerminationGracePeriodSeconds), "ripstopd")
	stopped := time.Since(began)
	if code := e.do(t, "docker", "inspect", "--format", "{{.State.ExitCode}}", "ripstopd"); code != "0" {
		t.Errorf("told to stop, it ends with %s", code)
	}
	if stopped > 5*time.Second {
		t.Errorf("it took %s to stop", stopped)
	}
	e.do(t, "docker", "rm", "ripstopd")
	start()
	eventually(t, 30*time.Second, "the next container is ready", ready)
	report := pinger.Stop()
	t.Logf("stopped in %s; %s", stopped.Round(time.Millisecond), report)
	if report.Lost > 0 || report.Sent < 20 {
		t.Errorf("an update lost pings: %s", report)
	}
	e.do(t, "docker", "rm", "--force", "ripstopd")
}

// startByHand starts a daemon on a host that uses the secure store.
func startByHand(t *testing.T, h *lab.Host, url, secret string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(programs, "ripstopd"), "--etcd-endpoints="+url, "--node-name="+h.Name,
		"--etcd-cafile="+filepath.Join(secret, "ca.crt"), "--etcd-certfile="+filepath.Join(secret, "tls.crt"), "--etcd-keyfile="+filepath.Join(secret, "tls.key"),
		"--run-dir="+filepath.Join(h.Dir, "run"), "--state-dir="+filepath.Join(h.Dir, "state"), "--subnet-file="+h.SubnetFile())
	log, err := os.Create(h.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := cmd.Process.Signal(os.Interrupt)
		if err = errors.Join(err, cmd.Wait()); err != nil {
			t.Errorf("%s: %v", h.Name, err)
		}
	})
	eventually(t, 30*time.Second, h.Name+" is ready", func() bool { _, err := os.Stat(h.SubnetFile()); return err == nil })
}

// probed asks what the kubelet does.
func probed(h *lab.Host, probe *corev1.Probe) bool {
	get := probe.HTTPGet
	status, _ := httpGet(h, netip.AddrPortFrom(netip.MustParseAddr(get.Host), uint16(get.Port.IntValue())), get.Path)
	return strings.Contains(status, " 200 ")
}

// onlyAddress gives the host an address of its own subnet, as a pod has one.
func onlyAddress(t *testing.T, h *lab.Host, subnetFile string) netip.Addr {
	t.Helper()
	env, err := envfile.Read(subnetFile)
	if err != nil {
		t.Fatal(err)
	}
	a := env.Subnets[subnet.V4].Addr().Next().Next()
	cmd := exec.Command("ip", "address", "add", a.String()+"/32", "dev", "lo")
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return a
}
