package settings

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker: -X .../settings.version=v1.2.3.
var version = ""

// Version says which build this is, and the Go that built it.
func Version() string {
	return fmt.Sprintf("%s (%s, %s/%s)", Release(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// Release is the version, or the commit that this was built from.
func Release() string {
	v := version
	if v == "" {
		v = "devel"
		if info, ok := debug.ReadBuildInfo(); ok {
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" && len(s.Value) >= 12 {
					v = "devel-" + s.Value[:12]
				}
			}
		}
	}
	return v
}
