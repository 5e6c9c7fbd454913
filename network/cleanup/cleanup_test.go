package cleanup

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
)

func lease(node string, third byte, public string) subnet.Lease {
	return subnet.Lease{
		Node: node, Backend: "vxlan", Subnets: subnet.Subnets{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, third, 0}), 24)},
		Endpoints: subnet.PerFamily[subnet.Endpoint]{{PublicIP: netip.MustParseAddr(public), VNI: 1, MAC: subnet.MAC{2, 0, 0, 0, 0, third}}},
	}
}

// TestLeaseIsReleasedOnlyIfItIsProvedToBeOurs.
func TestLeaseIsReleasedOnlyIfItIsProvedToBeOurs(t *testing.T) {
	here := netip.MustParseAddr("10.99.0.1")
	for name, tc := range map[string]struct {
		record   subnet.Lease
		reserved bool
		saved    bool // What is saved is this lease.
		gone     bool
	}{
		"this host's address":                    {lease("self", 1, "10.99.0.1"), false, false, true},
		"saved, behind a NAT":                    {lease("self", 1, "203.0.113.1"), false, true, true},
		"our name on another host":               {lease("self", 1, "10.99.0.2"), false, false, false},
		"our address under another name":         {lease("other", 1, "10.99.0.1"), false, true, false},
		"an operator's reservation for our name": {lease("self", 1, "10.99.0.1"), true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			store := subnettest.NewMemory()
			store.Put(tc.record.Subnets.Key(), tc.record.Record(), !tc.reserved)
			bystander := lease("bystander", 9, "10.99.0.9")
			store.Put(bystander.Subnets.Key(), bystander.Record(), true)
			seen, err := store.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			r := &Lease{Store: store, Node: "self", Addresses: []netip.Addr{here}}
			if tc.saved {
				r.Saved = seen.Leases[0]
			}
			found, err := Find(t.Context(), r)
			if err != nil || (len(found.Ours) == 1) != tc.gone || tc.record.Node == "self" && len(found.Ours)+len(found.Left) != 1 {
				t.Errorf("found %+v, %v", found, err)
			}
			if _, there := store.Record(tc.record.Subnets.Key()); !there {
				t.Error("looking took it away")
			}
			if err := Remove(t.Context(), r); err != nil {
				t.Error(err)
			}
			if _, there := store.Record(tc.record.Subnets.Key()); there == tc.gone {
				t.Errorf("the record is there: %v", there)
			}
			if _, there := store.Record(bystander.Subnets.Key()); !there {
				t.Error("another's record is gone")
			}
		})
	}
}

// TestListGoesOnlyIfItIsOurs, and the plugin stays.
func TestListGoesOnlyIfItIsOurs(t *testing.T) {
	for text, left := range map[string]string{`{"writtenBy": "ripstopd"}`: "", `{"writtenBy": "me"}`: "did not write it", "{": "did not write it", "": ""} {
		list := filepath.Join(t.TempDir(), cnifiles.ListName)
		if text != "" {
			if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := &Files{SubnetFile: list + ".none", List: list}
		found, err := Find(t.Context(), r)
		if err != nil || (len(found.Left) == 1) != (left != "") || left != "" && !strings.Contains(found.Left[0], left) {
			t.Errorf("%s: %v, %v", text, found, err)
		}
		if err := Remove(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(list); (err == nil) != (left != "") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestFilesGoOnlyIfTheyAreOurs(t *testing.T) {
	own := subnet.Subnets{netip.MustParsePrefix("10.5.1.0/24")}
	for name, tc := range map[string]struct {
		own   subnet.Subnets
		env   string
		extra bool
		want  []string
	}{
		"ours":                         {own, "FLANNEL_SUBNET=10.5.1.1/24\n", false, nil},
		"another's subnet":             {own, "FLANNEL_SUBNET=10.5.2.1/24\n", false, []string{"subnet.env"}},
		"nothing saved":                {subnet.Subnets{}, "FLANNEL_SUBNET=10.5.1.1/24\n", false, []string{"subnet.env"}},
		"unreadable":                   {own, "FLANNEL_SUBNET=x\n", false, []string{"subnet.env"}},
		"a stranger in the state-dir":  {own, "FLANNEL_SUBNET=10.5.1.1/24\n", true, []string{"state", "state/stranger"}},
		"no subnet file, nothing else": {own, "", false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			state := filepath.Join(dir, "state")
			files := map[string]string{"subnet.env": tc.env, "state/snapshot": "s"}
			if tc.extra {
				files["state/stranger"] = "x"
			}
			if err := os.Mkdir(state, 0o700); err != nil {
				t.Fatal(err)
			}
			for path, text := range files {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r := &Files{SubnetFile: filepath.Join(dir, "subnet.env"), Own: tc.own, Others: []string{filepath.Join(state, "snapshot"), state, filepath.Join(dir, "none")}}
			if _, err := Find(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if err := Remove(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			var left []string
			_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
				if rel, _ := filepath.Rel(dir, path); rel != "." {
					left = append(left, rel)
				}
				return err
			})
			slices.Sort(left)
			if !slices.Equal(left, tc.want) {
				t.Errorf("left %v, want %v", left, tc.want)
			}
		})
	}
}

type failing struct{ asked bool }

var errFails = errors.New("it is in use")

func (f *failing) Find(context.Context) (Finding, error) { return Finding{Ours: []string{"x"}}, nil }
func (f *failing) Remove(context.Context) error          { f.asked = true; return errFails }

// TestFailureKeepsWhatComesLater: by what is saved the lease is known as ours
// when it is done again.
func TestFailureKeepsWhatComesLater(t *testing.T) {
	first, later := &failing{}, &failing{}
	err := Remove(t.Context(), first, later)
	if !errors.Is(err, errFails) || !strings.HasPrefix(err.Error(), "remove: ") || !first.asked || later.asked {
		t.Errorf("got %v, asked %v %v", err, first.asked, later.asked)
	}
}
