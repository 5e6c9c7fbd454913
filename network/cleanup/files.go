package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// Files removes files. The subnet file bears a name that others use too: it goes
// only if it has the node's own subnets.
type Files struct {
	SubnetFile string
	// InUseBy names another daemon that has the subnet file by now, "" for none.
	InUseBy string
	// Own are the subnets of the node's lease; zero for not known.
	Own subnet.Subnets
	// Others are gone by in order; a folder goes if it is empty then.
	Others []string
	// List is the CNI list, which goes if a daemon of ours wrote it; "" for none.
	List  string
	found []string
}

// Find implements Remover.
func (f *Files) Find(context.Context) (out Finding, err error) {
	f.found = nil
	env, err := envfile.Read(f.SubnetFile)
	switch {
	case err != nil:
		out.Left = append(out.Left, fmt.Sprintf("%s: it cannot be read, so it may be another's: %v", f.SubnetFile, err))
	case env.Subnets == subnet.Subnets{}: // There is none.
	case f.InUseBy != "":
		out.Left = append(out.Left, fmt.Sprintf("%s: it is in use by %s", f.SubnetFile, f.InUseBy))
	case env.Subnets == f.Own:
		f.found = append(f.found, f.SubnetFile)
	case f.Own == subnet.Subnets{}:
		out.Left = append(out.Left, fmt.Sprintf("%s: it has %s, and nothing saved says that this was this node's lease", f.SubnetFile, env.Subnets))
	default:
		out.Left = append(out.Left, fmt.Sprintf("%s: it has %s, this node's lease was %s", f.SubnetFile, env.Subnets, f.Own))
	}
	if err := f.findList(&out); err != nil {
		return out, err
	}
	for _, path := range f.Others {
		switch info, err := os.Lstat(path); {
		case err == nil && info.IsDir() && !f.empties(path):
			out.Left = append(out.Left, path+": it holds more than ours")
		case err == nil:
			f.found = append(f.found, path)
		case !errors.Is(err, fs.ErrNotExist):
			return out, fmt.Errorf("look for files: %w", err)
		}
	}
	for _, path := range f.found {
		out.Ours = append(out.Ours, "file "+filepath.Clean(path))
	}
	return out, nil
}

// findList looks at the CNI list. Without one a runtime adds no pods; the plugin
// stays, for those that are there are still to be taken away by it.
func (f *Files) findList(out *Finding) error {
	if f.List == "" {
		return nil
	}
	ours, err := cnifiles.Ours(f.List)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case ours:
		f.found = append(f.found, f.List)
	default:
		out.Left = append(out.Left, f.List+": ripstopd did not write it")
	}
	return nil
}

// Remove implements Remover.
func (f *Files) Remove(context.Context) error {
	var errs []error
	for _, path := range f.found {
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err == nil && info.IsDir() && !f.empties(path):
			continue // Something came since.
		case err == nil:
			err = os.Remove(path)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// empties tells whether a folder holds nothing but what goes.
func (f *Files) empties(dir string) bool {
	inside, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(inside, func(e fs.DirEntry) bool { return !slices.Contains(f.found, filepath.Join(dir, e.Name())) })
}
