// Package build tells which build of ambit a program is.
package build

import "runtime/debug"

// version is set by the linker (-X github.com/ambit-mesh/ambit/api/build.version=...).
var version string

// Version is the release that the program was linked as; else the module version that `go install` recorded; else "dev".
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}
