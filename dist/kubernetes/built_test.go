package kubernetes

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// built are the manifests as "kubectl kustomize" writes them, by kind and name.
func built(t *testing.T) map[string][]byte {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), ".")
	if err != nil {
		t.Fatalf("kustomize: %v", err)
	}
	out := map[string][]byte{}
	for _, r := range made.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		out[r.GetKind()+" "+r.GetNamespace()+"/"+r.GetName()] = text
	}
	return out
}

func strictly[T any](t *testing.T, text []byte) (out T) {
	t.Helper()
	plain, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatal(err)
	}
	strict, err := json.UnmarshalStrict(plain, &out)
	if err := errors.Join(append(strict, err)...); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestBuiltManifests: what the kustomization makes of the files is what Kubernetes
// takes, whole, in one namespace, and with the image that the kustomization names.
func TestBuiltManifests(t *testing.T) {
	all := built(t)

	want := []string{"ConfigMap ripstop/ripstop-network", "ConfigMap ripstop/ripstop-settings", "DaemonSet ripstop/ripstopd", "Job ripstop/ripstop-network", "Namespace /ripstop"}
	if got := slices.Sorted(maps.Keys(all)); !slices.Equal(got, want) {
		t.Fatalf("built are %v", got)
	}
	strictly[corev1.Namespace](t, all[want[4]])
	network, settings := strictly[corev1.ConfigMap](t, all[want[0]]), strictly[corev1.ConfigMap](t, all[want[1]])
	set, job := strictly[appsv1.DaemonSet](t, all[want[2]]), strictly[batchv1.Job](t, all[want[3]])
	for what, pod := range map[string]corev1.PodSpec{"daemon": set.Spec.Template.Spec, "job": job.Spec.Template.Spec} {
		// The image is the kustomization's, with its tag.
		if image := pod.Containers[0].Image; image != "ripstop:latest" {
			t.Errorf("%s: image %q", what, image)
		}
		checkPod(t, what, pod, pod.Containers[0].Image, []string{settings.Name, network.Name})
		if c := pod.Containers[0].SecurityContext.Capabilities.Add; what == "job" && len(c) > 0 {
			t.Errorf("the job has capabilities %v", c)
		}
	}
	checkDaemon(t, set)
	pod := set.Spec.Template.Spec
	// A daemon ends within a second: one that does not is not to hold up an update.
	if g := pod.TerminationGracePeriodSeconds; g == nil || *g > 30 {
		t.Errorf("the daemon's grace is %v", g)
	}
	// What the liveness probe takes to give a daemon up is longer than the loop may rest.
	if p := pod.Containers[0].LivenessProbe; p.PeriodSeconds*p.FailureThreshold < 60 {
		t.Errorf("a daemon that does not answer is ended after %d s", p.PeriodSeconds*p.FailureThreshold)
	}
	// Without limits: a daemon that is throttled or killed leaves its node without mending.
	if r := pod.Containers[0].Resources; len(r.Limits) > 0 || len(r.Requests) != 2 {
		t.Errorf("resources %+v", r)
	}
	// Nothing but folders of the node's and the Secret, and the Secret in both.
	for _, v := range pod.Volumes {
		if v.HostPath == nil && v.Secret == nil {
			t.Errorf("volume %s is %+v", v.Name, v.VolumeSource)
		}
		if v.HostPath != nil && (*v.HostPath.Type != corev1.HostPathDirectoryOrCreate || strings.Count(v.HostPath.Path, "/") < 2) {
			t.Errorf("volume %s is %+v", v.Name, v.HostPath)
		}
	}
	for _, p := range []corev1.PodSpec{pod, job.Spec.Template.Spec} {
		if !slices.ContainsFunc(p.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && v.Secret.SecretName == "ripstop-etcd" }) {
			t.Errorf("no certificates of etcd's: %+v", p.Volumes)
		}
	}
	if set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType {
		t.Errorf("update %+v", set.Spec.UpdateStrategy)
	}
}
