//go:build packages

// Package packages tests what "make packages" builds.
package packages

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// both are the files that each package has, with their modes.
var both = map[string]string{
	"/etc/ripstop/ripstopd.env":                            "-rw-------",
	"/usr/bin/ripstop":                                     "-rwxr-xr-x",
	"/usr/bin/ripstop-cni":                                 "-rwxr-xr-x",
	"/usr/bin/ripstopd":                                    "-rwxr-xr-x",
	"/usr/lib/NetworkManager/conf.d/ripstop.conf":          "-rw-r--r--",
	"/usr/lib/systemd/network/10-ripstop.network":          "-rw-r--r--",
	"/usr/lib/systemd/networkd.conf.d/ripstop.conf":        "-rw-r--r--",
	"/usr/lib/systemd/system/ripstopd.service":             "-rw-r--r--",
	"/usr/share/bash-completion/completions/ripstop":       "-rw-r--r--",
	"/usr/share/doc/ripstop/README.md":                     "-rw-r--r--",
	"/usr/share/doc/ripstop/copyright":                     "-rw-r--r--",
	"/usr/share/doc/ripstop/docker.service.d/ripstop.conf": "-rw-r--r--",
	"/usr/share/doc/ripstop/prometheus/board.json":         "-rw-r--r--",
	"/usr/share/doc/ripstop/prometheus/ripstop.rules.yml":  "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/ripstop.fish":    "-rw-r--r--",
}

// with are those of both, the pages to which messages refer, and one file more.
func with(t *testing.T, file string) map[string]string {
	t.Helper()
	files := map[string]string{file: "-rw-r--r--"}
	pages, err := os.ReadDir("../../Documentation")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		files["/usr/share/doc/ripstop/Documentation/"+p.Name()] = "-rw-r--r--"
	}
	for path, mode := range both {
		files[path] = mode
	}
	return files
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// build makes the packages and returns their paths.
func build(t *testing.T) (deb, rpm string) {
	t.Helper()
	dir := t.TempDir()
	run(t, "make", "-C", "../..", "packages", "PACKAGES="+dir, "PACKAGE_VERSION=9.8.7")
	debs, _ := filepath.Glob(filepath.Join(dir, "*_9.8.7_*.deb"))
	rpms, _ := filepath.Glob(filepath.Join(dir, "*-9.8.7-*.rpm"))
	if len(debs) != 1 || len(rpms) != 1 {
		t.Fatalf("built %v and %v", debs, rpms)
	}
	return debs[0], rpms[0]
}

// TestRealPackages have what is to be installed and nothing else, and the .deb comes
// and goes without a trace.
func TestRealPackages(t *testing.T) {
	deb, rpm := build(t)
	files := map[string]string{}
	for line := range strings.Lines(run(t, "dpkg-deb", "-c", deb)) {
		if f := strings.Fields(line); !strings.HasPrefix(f[0], "d") {
			files[strings.TrimPrefix(f[5], ".")] = f[0]
			if f[1] != "root/root" {
				t.Errorf("%s belongs to %s", f[5], f[1])
			}
		}
	}
	if d := cmp.Diff(with(t, "/usr/share/zsh/vendor-completions/_ripstop"), files); d != "" {
		t.Errorf(".deb:\n%s", d)
	}
	if conf := run(t, "dpkg-deb", "-I", deb, "conffiles"); strings.TrimSpace(conf) != "/etc/ripstop/ripstopd.env" {
		t.Errorf("configuration files: %s", conf)
	}
	listed, conf := rpmFiles(t, rpm)
	if d := cmp.Diff(with(t, "/usr/share/zsh/site-functions/_ripstop"), listed); d != "" {
		t.Errorf(".rpm:\n%s", d)
	}
	if !slices.Equal(conf, []string{"/etc/ripstop/ripstopd.env"}) {
		t.Errorf(".rpm's configuration files that are not replaced: %v", conf)
	}
	comesAndGoes(t, deb)
	comesAndGoesAsRPM(t, rpm)
}

// comesAndGoesAsRPM installs, upgrades and removes the .rpm in a fresh root by the real
// rpm, which then has nothing to say against a single file. Its scripts want a shell in
// that root, and a static busybox is one.
func comesAndGoesAsRPM(t *testing.T, path string) {
	t.Helper()
	root := t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err == nil {
		err = os.Mkdir(filepath.Join(root, "bin"), 0o755)
	}
	for _, name := range []string{"sh", "["} {
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "bin", name), busybox, 0o755)
		}
	}
	if err != nil {
		t.Fatalf("the package busybox-static is needed: %v", err)
	}
	rpm := func(args ...string) string {
		t.Helper()
		return run(t, "rpm", append([]string{"--root=" + root, "--dbpath=/var/lib/rpm"}, args...)...)
	}
	rpm("--initdb")
	before := tree(t, root)
	// This machine's rpm knows of no other packages, and so of no shell.
	rpm("--install", "--nodeps", path)
	if said := rpm("--verify", "--nodeps", "ripstop"); said != "" {
		t.Errorf("rpm finds the files changed: %s", said)
	}
	if out := run(t, filepath.Join(root, "usr/bin/ripstopd"), "--version"); !strings.HasPrefix(out, "ripstopd ") {
		t.Errorf("ripstopd says %s", out)
	}
	settings := filepath.Join(root, "etc/ripstop/ripstopd.env")
	const mine = "RIPSTOPD_IFACE=eth1\n"
	if err := os.WriteFile(settings, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	rpm("--upgrade", "--force", "--nodeps", path)
	if text, err := os.ReadFile(settings); err != nil || string(text) != mine {
		t.Errorf("after an upgrade the settings are %s: %v", text, err)
	}
	rpm("--erase", "--nodeps", "ripstop")
	left := slices.DeleteFunc(tree(t, root), func(p string) bool { return slices.Contains(before, p) })
	// rpm keeps settings that were changed, under a name that says so.
	if want := []string{"etc", "etc/ripstop", "etc/ripstop/ripstopd.env.rpmsave"}; !onlyFolders(t, root, left, want) {
		t.Errorf("left behind: %v", left)
	}
}

// onlyFolders tells whether what is left are the wanted paths and folders that are no
// package's.
func onlyFolders(t *testing.T, root string, left, want []string) bool {
	t.Helper()
	for _, p := range left {
		info, err := os.Stat(filepath.Join(root, p))
		if err != nil {
			t.Fatal(err)
		}
		if !info.IsDir() && !slices.Contains(want, p) {
			return false
		}
	}
	return slices.Contains(left, want[len(want)-1])
}

func comesAndGoes(t *testing.T, deb string) {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "run/systemd"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	before := tree(t, root)
	// The scripts run outside, and look for systemd in the root.
	dpkg := func(args ...string) {
		t.Helper()
		run(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--log=/dev/null"}, args...)...)
	}
	dpkg("--install", deb)
	for program, says := range map[string]string{"ripstopd": "ripstopd ", "ripstop": "ripstop version "} {
		if out := run(t, filepath.Join(root, "usr/bin", program), "--version"); !strings.HasPrefix(out, says) {
			t.Errorf("%s says %s", program, out)
		}
	}
	settings := filepath.Join(root, "etc/ripstop/ripstopd.env")
	const mine = "RIPSTOPD_IFACE=eth1\n"
	if err := os.WriteFile(settings, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	dpkg("--force-confold", "--install", deb)
	dpkg("--remove", "ripstop")
	if text, err := os.ReadFile(settings); err != nil || string(text) != mine {
		t.Errorf("the settings are %s after upgrade and removal: %v", text, err)
	}
	dpkg("--purge", "ripstop")
	if d := cmp.Diff(before, tree(t, root)); d != "" {
		t.Errorf("left behind:\n%s", d)
	}
}

// tree lists the files and folders, those of dpkg's and rpm's own apart.
func tree(t *testing.T, root string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (path == filepath.Join(root, "var/lib/dpkg") || path == filepath.Join(root, "var/lib/rpm")) {
			return fs.SkipDir
		}
		rel, _ := filepath.Rel(root, path)
		paths = append(paths, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// Of the header of an .rpm, by the tags of rpm's lib/rpmtag.h.
const (
	tagModes      = 1030
	tagFlags      = 1037
	tagDirIndexes = 1116
	tagBaseNames  = 1117
	tagDirNames   = 1118
	leadLen       = 96
	// flagsConfig are RPMFILE_CONFIG and RPMFILE_NOREPLACE.
	flagsConfig = 1<<0 | 1<<4
)

// rpmFiles reads what an .rpm's header says of its files.
func rpmFiles(t *testing.T, path string) (modes map[string]string, conf []string) {
	t.Helper()
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	// header returns where a header's entries and data begin, and where it ends.
	header := func(at int) (entries, data, end int) {
		if !bytes.Equal(all[at:at+3], []byte{0x8e, 0xad, 0xe8}) {
			t.Fatal("no header")
		}
		entries = at + 16
		data = entries + 16*int(be.Uint32(all[at+8:]))
		return entries, data, data + int(be.Uint32(all[at+12:]))
	}
	_, _, end := header(leadLen)
	entries, data, _ := header((end + 7) / 8 * 8) // A signature comes first.
	type field struct {
		at    []byte
		count int
	}
	fields := map[uint32]field{}
	for e := entries; e < data; e += 16 {
		fields[be.Uint32(all[e:])] = field{all[data+int(be.Uint32(all[e+8:])):], int(be.Uint32(all[e+12:]))}
	}
	texts := func(tag uint32) []string {
		f := fields[tag]
		words := strings.SplitN(string(f.at[:min(len(f.at), 1<<16)]), "\x00", f.count+1)
		return words[:f.count]
	}
	names, dirs := texts(tagBaseNames), texts(tagDirNames)
	modes = map[string]string{}
	for i, name := range names {
		mode := be.Uint16(fields[tagModes].at[2*i:])
		if mode&0o170000 == 0o040000 {
			continue
		}
		full := dirs[be.Uint32(fields[tagDirIndexes].at[4*i:])] + name
		modes[full] = fs.FileMode(mode & 0o777).String()
		if be.Uint32(fields[tagFlags].at[4*i:])&flagsConfig == flagsConfig {
			conf = append(conf, full)
		}
	}
	return modes, conf
}
