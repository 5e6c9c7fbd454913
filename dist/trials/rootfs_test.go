//go:build runtime

package trials

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"testing"
)

// testImage is the name of the image that busyboxImage makes.
const testImage = "ripstop.test/busybox:latest"

// busyboxImage writes an image whose root filesystem is a static busybox and nothing
// else, in the form of "docker save". What it starts by itself only waits, as the
// container that a runtime keeps a pod's network by.
func busyboxImage(t *testing.T, path string) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the package busybox-static is needed: %v", err)
	}
	layer := archive(t, []file{{"bin/", nil}, {"bin/busybox", busybox}, {"etc/", nil}, {"proc/", nil}, {"sys/", nil}, {"dev/", nil}, {"www/", nil}})
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/bin/busybox", "sleep", "86400"}, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{testImage}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, archive(t, []file{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}}), 0o644); err != nil {
		t.Fatal(err)
	}
}

// file is one of an archive; one whose name ends in a slash is a folder.
type file struct {
	name string
	text []byte
}

func archive(t *testing.T, files []file) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.text)), Typeflag: tar.TypeReg}
		if f.text == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
