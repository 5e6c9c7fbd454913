package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// Errors of the subnet file beyond those of its text.
var (
	errNoFile   = errors.New("it is not there")
	errOddFile  = errors.New("it is no regular file")
	errNoSubnet = errors.New("it has no subnet")
)

// readSubnetFile reads the file without waiting on what is none.
func readSubnetFile(path string) (envfile.Env, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return envfile.Env{}, errNoFile
	case err != nil:
		return envfile.Env{}, err
	case !info.Mode().IsRegular():
		return envfile.Env{}, errOddFile
	}
	env, err := envfile.Read(path)
	if err == nil && env.Subnets == (subnet.Subnets{}) {
		err = errNoSubnet
	}
	return env, err
}

func checkSubnetFile(_ context.Context, c *Scene, _ Sources) ([]Verdict, error) {
	env, err := readSubnetFile(c.Setup.SubnetFile)
	return judgeSubnetFile(c, env, err), nil
}

// judgeSubnetFile says whether CNI plugins and Docker are told what is so.
func judgeSubnetFile(c *Scene, env envfile.Env, err error) []Verdict {
	path := c.Setup.SubnetFile
	v := Verdict{Severity: Failure, Evidence: []string{path}, Remedy: heals(c)}
	switch {
	case errors.Is(err, errNoFile):
		v.Summary = "the subnet file is missing: no pod can be started"
		if c.waitsForLease() {
			v.Remedy = []string{"It is written once the node has a lease: see the checks \"store\" and \"daemon\"."}
		}
	case err != nil:
		v.Summary = "the subnet file cannot be read: no pod can be started"
		v.Evidence = []string{path + ": " + err.Error()}
		v.Remedy = append([]string{"Move what is there out of the way:", Command("mv %s %s.old", path, path)}, v.Remedy...)
	default:
		for _, f := range subnet.Families {
			if own := c.Own.Subnets[f]; own != env.Subnets[f] && c.Own.Subnets != (subnet.Subnets{}) {
				v.Evidence = append(v.Evidence, fmt.Sprintf("%s: the file says %s, the lease is of %s", f, orNone(env.Subnets[f].IsValid(), env.Subnets[f].String()), orNone(own.IsValid(), own.String())))
			}
		}
		if len(v.Evidence) == 1 {
			return well("the subnet file is there and says what the lease does")
		}
		v.Summary = "the subnet file is not of this node's lease: pods get addresses that are another's"
	}
	return []Verdict{v}
}

// waitsForLease tells that the daemon is there and has nothing to write into the file yet.
func (c *Scene) waitsForLease() bool {
	return c.Status != nil && slices.ContainsFunc(c.Status.Conditions, func(cond status.Condition) bool {
		return !cond.OK && (cond.Name == status.Started || cond.Name == status.LeaseHeld)
	})
}

func orNone(is bool, text string) string {
	if !is {
		return "none"
	}
	return text
}

// cniList is a file among CNI's configurations.
type cniList struct {
	name string
	err  error
	// plugins are the types that it names, in order; ours is the entry of our plugin.
	plugins []string
	ours    *cniPlugin
}

type cniPlugin struct {
	Type       string `json:"type"`
	SubnetFile string `json:"subnetFile"`
	MTU        int    `json:"mtu"`
}

// program is the plugin's file.
type program struct {
	path string
	err  error
	// other tells that it is not the one that came with this program.
	other bool
}

// mostList bounds a file that is read, in bytes.
const mostList = 1 << 20

func checkCNI(_ context.Context, c *Scene, _ Sources) ([]Verdict, error) {
	lists, err := readLists(c.Setup.ConfDir)
	if err != nil {
		return nil, err
	}
	return judgeCNI(c, lists, readProgram(c.Setup)), nil
}

// readLists reads a folder as runtimes do: files of three endings, by name.
func readLists(dir string) ([]cniList, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []cniList
	for _, e := range all {
		if !slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			continue
		}
		out = append(out, readList(filepath.Join(dir, e.Name())))
	}
	return out, nil
}

func readList(path string) cniList {
	l := cniList{name: filepath.Base(path)}
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > mostList) {
		err = errOddFile
	}
	if err != nil {
		l.err = err
		return l
	}
	text, err := os.ReadFile(path)
	if err != nil {
		l.err = err
		return l
	}
	var file struct {
		cniPlugin
		Plugins []cniPlugin `json:"plugins"`
	}
	if l.err = json.Unmarshal(text, &file); l.err != nil {
		return l
	}
	if file.Type != "" {
		file.Plugins = append(file.Plugins, file.cniPlugin)
	}
	for _, p := range file.Plugins {
		l.plugins = append(l.plugins, p.Type)
		if p.Type == cnifiles.PluginName {
			l.ours = &p
		}
	}
	if len(l.plugins) == 0 {
		l.err = errors.New("it names no plugin")
	}
	return l
}

func readProgram(s Setup) program {
	p := program{path: filepath.Join(s.BinDir, cnifiles.PluginName)}
	info, err := os.Stat(p.path)
	switch {
	case err != nil:
		p.err = err
	case !info.Mode().IsRegular():
		p.err = errOddFile
	case info.Mode()&0o111 == 0:
		p.err = errors.New("it may not be executed")
	case s.Plugin != "":
		have, errHave := os.ReadFile(p.path)
		ours, errOurs := os.ReadFile(s.Plugin)
		p.other = errHave == nil && errOurs == nil && !bytes.Equal(have, ours)
	}
	return p
}

// judgeCNI says whether a runtime finds our plugin, and ours first. Runtimes take the
// first file by name. A host where none names our plugin has its pods' network from
// elsewhere, or none.
func judgeCNI(c *Scene, lists []cniList, p program) []Verdict {
	ours := slices.IndexFunc(lists, func(l cniList) bool { return l.ours != nil || l.name == cnifiles.ListName })
	if ours < 0 {
		if len(lists) == 0 {
			return well("no CNI configuration is on this host")
		}
		return well("no CNI configuration names %s; the first is %s, with %s", cnifiles.PluginName, lists[0].name, strings.Join(lists[0].plugins, ", "))
	}
	l, dir := lists[ours], c.Setup.ConfDir
	at := filepath.Join(dir, l.name)
	var out []Verdict
	switch {
	case l.err != nil:
		out = append(out, Verdict{Severity: Failure, Summary: "the CNI list cannot be used: no pod can be started", Evidence: []string{at + ": " + l.err.Error()}, Remedy: []string{"Delete it, and restart the daemon, which writes it anew:", Command("rm %s && systemctl restart ripstopd", at)}})
	case ours > 0:
		out = append(out, Verdict{
			Severity: Failure, Summary: fmt.Sprintf("runtimes use another CNI configuration, %s, for it comes first by name", lists[0].name), Evidence: []string{fmt.Sprintf("%s is number %d", at, ours+1)},
			Remedy: []string{"Move the other out of the way, if it is not meant to be:", Command("mv %s %s.off", filepath.Join(dir, lists[0].name), filepath.Join(dir, lists[0].name))},
		})
	case l.ours == nil:
		out = append(out, Verdict{Severity: Warning, Summary: fmt.Sprintf("%s does not name %s", l.name, cnifiles.PluginName), Evidence: []string{"plugins: " + strings.Join(l.plugins, ", ")}, Remedy: []string{"Delete it, and restart the daemon, which writes it anew."}})
	}
	if l.ours != nil {
		if file := l.ours.SubnetFile; file != "" && file != c.Setup.SubnetFile {
			out = append(out, Verdict{Severity: Failure, Summary: "the CNI list names another subnet file than the daemon writes", Evidence: []string{at + ": " + file, "the daemon's: " + c.Setup.SubnetFile}, Remedy: []string{"Make the two the same: subnetFile in the list, --subnet-file of the daemon."}})
		}
		if p.err != nil {
			out = append(out, Verdict{Severity: Failure, Summary: fmt.Sprintf("the CNI plugin %s cannot be executed: no pod can be started", cnifiles.PluginName), Evidence: []string{p.path + ": " + p.err.Error()}, Remedy: installPlugin(c.Setup, p)})
		}
		if p.other {
			out = append(out, Verdict{Severity: Warning, Summary: "the CNI plugin is of another version than this program", Evidence: []string{p.path + " differs from " + c.Setup.Plugin}, Remedy: []string{Command("install -m 755 %s %s", c.Setup.Plugin, p.path)}})
		}
		if mtu := l.ours.MTU; mtu != 0 && c.planner() != nil {
			if most, err := c.planner().MTU(); err == nil && mtu > most {
				out = append(out, Verdict{Severity: Warning, Summary: fmt.Sprintf("the CNI list gives pods MTU %d, and the tunnel carries %d: larger packets vanish", mtu, most), Evidence: []string{at}, Remedy: []string{"Leave \"mtu\" out of it: the plugin then goes by the subnet file."}})
			}
		}
	}
	if len(out) > 0 {
		return out
	}
	return well("runtimes find %s by %s", cnifiles.PluginName, l.name)
}

// installPlugin is the remedy for one that is not there.
func installPlugin(s Setup, p program) []string {
	if s.Plugin == "" {
		return []string{fmt.Sprintf("Install %s there, or have the daemon do that by --cni-bin-dir.", cnifiles.PluginName)}
	}
	return []string{"Install it, or have the daemon do that by --cni-bin-dir:", Command("install -m 755 %s %s", s.Plugin, p.path)}
}
