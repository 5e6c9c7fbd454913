package settings

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker: -X .../settings.version=v1.2.3.
var version = ""

// Version says which build this is: the version, or the commit it was built
// from, and the Go that built it.
func Version() string {
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
	return fmt.Sprintf("%s (%s, %s/%s)", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
