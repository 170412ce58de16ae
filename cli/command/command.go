// Package command is what every command is given: its streams, the global flags, and the version of this client. A command's
// own package has a New function that makes its cobra command, and does its work with libraries that know no flags.
package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// Env is shared by all commands of one run. Flags are valid once the command line has been read.
type Env struct {
	console.Console
	In      io.Reader
	Version string
	Kube    kube.Flags
	// MeshNamespace is the flag -i; empty: not given.
	MeshNamespace string
}

// NamespaceFlag makes -n a second name of -i, for commands whose subject is the mesh itself.
func (e *Env) NamespaceFlag(flags *pflag.FlagSet) {
	flags.StringVarP(&e.MeshNamespace, "namespace", "n", "", "the same as --mesh-namespace")
}

// InstallNamespace is where a mesh is installed if the command line names no other place.
func (e *Env) InstallNamespace() string {
	if e.MeshNamespace != "" {
		return e.MeshNamespace
	}
	return api.DefaultNamespace
}

// Connect connects to the cluster and asks for its version, so that a cluster out of reach is told at once.
func (e *Env) Connect(ctx context.Context) (*kube.Cluster, string, error) {
	cluster, err := e.Kube.Connect(e.InstallNamespace())
	if err != nil {
		return nil, "", err
	}
	version, err := cluster.Version(ctx)
	if err != nil {
		return nil, "", err
	}
	return cluster, version, nil
}

// FindMesh returns the namespace of the mesh and its parts: the one that -i names, else the only one there is. Where there
// is none, the parts are empty and the namespace is where one would be installed.
func (e *Env) FindMesh(ctx context.Context, cluster *kube.Cluster) (string, []survey.Part, error) {
	parts, err := survey.Parts(ctx, cluster.Kubernetes, e.MeshNamespace)
	if err != nil {
		return "", nil, err
	}
	switch found := survey.Namespaces(parts); len(found) {
	case 0:
		return e.InstallNamespace(), nil, nil
	case 1:
		return found[0], parts, nil
	default:
		return "", nil, console.Usagef("there is more than one mesh, in namespaces %s: say which with -i", strings.Join(found, ", "))
	}
}

// Commands refuses what is no command below this one, and suggests those of like names.
func Commands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2 // letters that differ
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		return console.Usagef("unknown command %q: do you mean %s?", args[0], strings.Join(like, " or "))
	}
	return console.Usagef("unknown command %q", args[0])
}

// NoArgs refuses arguments, as an error of the command line.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return console.Usagef("%s takes no argument, got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// InMesh is the flag that names a mesh in a command that is told to a person, or "" for the default place.
func InMesh(namespace string) string {
	if namespace == api.DefaultNamespace {
		return ""
	}
	return fmt.Sprintf(" -i %s", namespace)
}
