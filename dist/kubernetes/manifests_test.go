// Package kubernetes tests the manifests.
package kubernetes

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/ripstop-net/ripstop/subnet"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// decode takes one document of a file, and no key that the type has not.
func decode[T any](t *testing.T, file string, document int) (out T) {
	t.Helper()
	documents := bytes.Split(read(t, file), []byte("\n---\n"))
	text, err := yaml.YAMLToJSONStrict(documents[document])
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	// As the API server decodes it: the case of keys matters.
	strict, err := json.UnmarshalStrict(text, &out)
	if err := errors.Join(append(strict, err)...); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return out
}

// TestManifests are what Kubernetes takes, and agree with one another.
func TestManifests(t *testing.T) {
	kustomization := decode[struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Namespace  string   `json:"namespace"`
		Resources  []string `json:"resources"`
		Images     []struct {
			Name    string `json:"name"`
			NewName string `json:"newName"`
			NewTag  string `json:"newTag"`
		} `json:"images"`
	}](t, "kustomization.yaml", 0)
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(kustomization.Resources)
	if want := slices.DeleteFunc(files, func(f string) bool { return f == "kustomization.yaml" }); !slices.Equal(kustomization.Resources, want) {
		t.Errorf("the kustomization has %v, the folder %v", kustomization.Resources, want)
	}
	namespace := decode[corev1.Namespace](t, "namespace.yaml", 0)
	settings := decode[corev1.ConfigMap](t, "settings.yaml", 0)
	network := decode[corev1.ConfigMap](t, "network.yaml", 0)
	job := decode[batchv1.Job](t, "network.yaml", 1)
	set := decode[appsv1.DaemonSet](t, "daemonset.yaml", 0)
	for kind, meta := range map[string]string{
		"v1 Namespace": namespace.APIVersion + " " + namespace.Kind, "v1 ConfigMap": settings.APIVersion + " " + settings.Kind,
		"batch/v1 Job": job.APIVersion + " " + job.Kind, "apps/v1 DaemonSet": set.APIVersion + " " + set.Kind,
	} {
		if meta != kind {
			t.Errorf("%s is a %s", kind, meta)
		}
	}
	if namespace.Name != kustomization.Namespace {
		t.Errorf("the namespace is %s, all else is in %s", namespace.Name, kustomization.Namespace)
	}
	if _, err := subnet.ParseConfig([]byte(network.Data["network.json"])); err != nil {
		t.Errorf("the network config: %v", err)
	}
	if settings.Data["RIPSTOPD_ETCD_ENDPOINTS"] != settings.Data["RIPSTOP_ETCD_ENDPOINTS"] {
		t.Error("daemon and job have different etcds")
	}
	for name, pod := range map[string]corev1.PodSpec{"daemon": set.Spec.Template.Spec, "job": job.Spec.Template.Spec} {
		checkPod(t, name, pod, kustomization.Images[0].Name, []string{settings.Name, network.Name})
	}
	checkDaemon(t, set)
}

// checkPod holds a pod to what both have: they work before there is a network, are
// not privileged, and name what there is.
func checkPod(t *testing.T, name string, pod corev1.PodSpec, image string, maps []string) {
	t.Helper()
	c := pod.Containers[0]
	s := c.SecurityContext
	if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) ||
		s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%s: security context %+v", name, s)
	}
	if !pod.HostNetwork || *pod.AutomountServiceAccountToken || c.Image != image || !slices.Contains(maps, c.EnvFrom[0].ConfigMapRef.Name) {
		t.Errorf("%s: %+v", name, pod)
	}
	if len(pod.Tolerations) != 1 || pod.Tolerations[0].Operator != corev1.TolerationOpExists || pod.Tolerations[0].Key != "" {
		t.Errorf("%s tolerates %v", name, pod.Tolerations)
	}
	volumes := map[string]corev1.Volume{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v
	}
	for _, m := range c.VolumeMounts {
		v, ok := volumes[m.Name]
		if !ok {
			t.Errorf("%s mounts %s, which is no volume", name, m.Name)
		}
		if v.ConfigMap != nil && !slices.Contains(maps, v.ConfigMap.Name) {
			t.Errorf("%s has a volume of the ConfigMap %s, which there is not", name, v.ConfigMap.Name)
		}
		if m.Name == "etcd" && (v.Secret == nil || !m.ReadOnly || v.Secret.SecretName != "ripstop-etcd" || *v.Secret.DefaultMode != 0o400) {
			t.Errorf("%s: etcd's certificates are not of the Secret: %+v", name, v)
		}
		// What ripstopd writes into the list for runtimes are the node's paths.
		if v.HostPath != nil && v.HostPath.Path != m.MountPath {
			t.Errorf("%s has the node's %s at %s", name, v.HostPath.Path, m.MountPath)
		}
		delete(volumes, m.Name)
	}
	if len(volumes) > 0 {
		t.Errorf("%s has volumes that are not mounted: %v", name, volumes)
	}
}

func checkDaemon(t *testing.T, set appsv1.DaemonSet) {
	t.Helper()
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	for key, value := range set.Spec.Selector.MatchLabels {
		if set.Spec.Template.Labels[key] != value {
			t.Errorf("its pods have not the label %s=%s", key, value)
		}
	}
	if !slices.Equal(c.SecurityContext.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "NET_RAW"}) {
		t.Errorf("capabilities %v", c.SecurityContext.Capabilities.Add)
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("priority %q", pod.PriorityClassName)
	}
	// Two daemons cannot share a node: the second would not get the lock.
	update := set.Spec.UpdateStrategy.RollingUpdate
	if *update.MaxSurge != intstr.FromInt32(0) || *update.MaxUnavailable != intstr.FromString("10%") {
		t.Errorf("update %+v", update)
	}
	listen := ""
	for _, arg := range c.Args {
		if at, ok := strings.CutPrefix(arg, "--listen="); ok {
			listen = at
		}
	}
	for path, probe := range map[string]*corev1.Probe{"/healthz": c.LivenessProbe, "/readyz": c.ReadinessProbe} {
		if get := probe.HTTPGet; get.Path != path || get.Host+":"+get.Port.String() != listen {
			t.Errorf("the probe of %s asks %+v, and the daemon answers at %s", path, get, listen)
		}
	}
	if e := c.Env[0]; e.Name != "RIPSTOPD_NODE_NAME" || e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
		t.Errorf("%+v", e)
	}
}

// TestDockerfileHasWhatTheManifestsStart, and its binaries lie beside one another.
func TestDockerfileHasWhatTheManifestsStart(t *testing.T) {
	text := string(read(t, "../Dockerfile"))
	for _, line := range []string{"FROM scratch", "COPY ripstopd ripstop ripstop-cni /usr/bin/", `ENTRYPOINT ["/usr/bin/ripstopd"]`} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("lacks %s", line)
		}
	}
	if command := decode[batchv1.Job](t, "network.yaml", 1).Spec.Template.Spec.Containers[0].Command; command[0] != "/usr/bin/ripstop" {
		t.Errorf("the job starts %v", command)
	}
}
