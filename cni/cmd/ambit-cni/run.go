package main

import (
	"fmt"
	"io"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/cni/plugin"
)

// run answers one call of the container runtime, whose question is in the environment and on standard input.
func run(args []string, stdout, stderr io.Writer) int {
	about := api.PluginName + " " + build.Version()
	if len(args) == 1 && (args[0] == "version" || args[0] == "--version") {
		fmt.Fprintln(stdout, about)
		return 0
	}
	p := plugin.Plugin{Open: plugin.OpenCluster, Stdout: stdout, Stderr: stderr}
	if err := skel.PluginMainFuncsWithError(p.Funcs(), version.All, about); err != nil {
		if perr := err.Print(); perr != nil {
			fmt.Fprintln(stderr, "write the error:", perr)
		}
		return 1
	}
	return 0
}
