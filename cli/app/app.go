// Package app is the `ambit` command: it puts the commands together, runs the one that was asked for, and turns its error
// into a message and an exit code. It is the only place that decides on exit codes.
package app

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/cli/check"
	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/rollback"
	"github.com/ambit-mesh/ambit/cli/uninstall"
	"github.com/ambit-mesh/ambit/cli/upgrade"
	"github.com/ambit-mesh/ambit/cli/versions"
	"github.com/ambit-mesh/ambit/cli/waypoint"
	"github.com/ambit-mesh/ambit/cli/ztunnel"
)

const long = `ambit installs, upgrades, checks and removes the ambit service mesh.

Standard output is the answer and nothing else; notes and errors go to standard error.
Exit codes: 0 done or healthy; 1 it did not work, or a check failed; 2 the command line or a values file is wrong;
3 the cluster cannot be reached or does not let you in.`

// Run runs one command line and returns its exit code, one of console's.
func Run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return run(ctx, args, &command.Env{Console: console.Console{Out: out, Err: errOut}, In: in, Version: build.Version()})
}

func run(ctx context.Context, args []string, env *command.Env) int {
	root := New(env)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return console.ExitOK
	}
	var coded *console.Error
	if !errors.As(err, &coded) {
		coded = &console.Error{Code: console.ExitFailed, Err: err}
	}
	if !coded.Told {
		env.Notef("ambit: %v", err)
	}
	if coded.Code == console.ExitUsage {
		env.Notef("See %s --help.", cmd.CommandPath())
	}
	return coded.Code
}

// New makes the root command.
func New(env *command.Env) *cobra.Command {
	root := &cobra.Command{
		Use:           "ambit",
		Short:         "Install, upgrade, check and remove the ambit service mesh",
		Long:          long,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          command.Commands,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.SetIn(env.In)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &console.Error{Code: console.ExitUsage, Err: err} })
	env.Kube.Register(root.PersistentFlags())
	root.PersistentFlags().StringVarP(&env.MeshNamespace, "mesh-namespace", "i", "", "namespace of the mesh (default the one there is, else istio-system)")
	root.AddCommand(
		install.New(env),
		upgrade.New(env),
		rollback.New(env),
		uninstall.New(env),
		check.New(env),
		versions.New(env),
		ztunnel.New(env),
		waypoint.New(env),
	)
	return root
}
