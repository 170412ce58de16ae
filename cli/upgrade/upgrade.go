// Package upgrade is `ambit upgrade`: it brings an installed mesh to this client's version in the order in which the parts
// tolerate each other, and says the way back where it has to stop.
package upgrade

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/semver"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/cli/stages"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// defaultTimeout is how long each part may take; a node proxy's old pods alone may take their whole grace period on each node.
const defaultTimeout = 10 * time.Minute

type options struct {
	values      release.Values
	resetValues bool
	downgrade   bool
	skipCRDs    bool
	dryRun      bool
	timeout     time.Duration
}

const long = `Upgrade brings an installed mesh to the version of this ambit: custom resource definitions first, then the control
plane, the node agent and the node proxy, each waited for. It stops at the first part that does not become ready and says the
way back.

The values of the installation are kept; those on the command line are laid over them.`

// New makes the command.
func New(env *command.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring the installed mesh to this version, part by part",
		Long:  long,
		Args:  command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), env, o)
		},
	}
	flags := cmd.Flags()
	env.NamespaceFlag(flags)
	install.ValuesFlags(cmd, &o.values)
	flags.BoolVar(&o.resetValues, "reset-values", false, "forget the values of the installation")
	flags.BoolVar(&o.downgrade, "downgrade", false, "go on although this ambit is older than what is installed")
	flags.BoolVar(&o.skipCRDs, "skip-crds", false, "leave the custom resource definitions to others")
	flags.BoolVar(&o.dryRun, "dry-run", false, "print the YAML that would be applied and change nothing")
	flags.DurationVar(&o.timeout, "timeout", defaultTimeout, "how long each part may take")
	return cmd
}

func run(ctx context.Context, env *command.Env, o options) error {
	given, err := o.values.Merge()
	if err != nil {
		return &console.Error{Code: console.ExitUsage, Err: err}
	}
	chart, err := release.Load(env.Version, false)
	if err != nil {
		return err
	}
	mesh, err := stages.Find(ctx, env)
	if err != nil {
		return err
	}
	cluster, namespace, releases, current := mesh.Cluster, mesh.Namespace, mesh.Releases, mesh.Current
	if current == nil || current.Status == "uninstalled" {
		return fmt.Errorf("there is no Helm release %q in namespace %s: install the mesh with ambit install, or upgrade it with what installed it",
			release.Name, namespace)
	}
	if older(chart.Version(), current.Version) && !o.downgrade {
		return fmt.Errorf("this ambit is %s, which is older than %s that is installed: take a newer ambit, or go back on purpose with --downgrade",
			chart.Version(), current.Version)
	}
	vals := given
	if !o.resetValues {
		vals = release.Overlay(current.Values, given)
	}
	manifest, err := chart.Render(ctx, namespace, vals)
	if err != nil {
		return &console.Error{Code: console.ExitUsage, Err: err}
	}
	if o.dryRun {
		env.Printf("%s", manifest)
		return nil
	}
	env.Notef("Upgrading ambit in namespace %s from %s to %s", namespace, current.Version, chart.Version())
	if tag, ok := vals["tag"].(string); ok && tag != "" && tag != chart.Version() {
		env.Notef("The value tag=%s decides on the images; --set tag= goes back to this version's own.", tag)
	}
	if !o.skipCRDs {
		if err := install.ApplyCRDs(ctx, env, cluster); err != nil {
			return err
		}
	}
	way := &stages.Run{
		Env: env, Cluster: cluster, Releases: releases, Namespace: namespace, Chart: chart, Values: vals,
		Order: survey.Components, What: "ambit upgrade to " + chart.Version(), Timeout: o.timeout,
	}
	done, err := way.Do(ctx)
	if err != nil {
		wayBack(env, releases, current, namespace)
		return err
	}
	env.Printf("ambit %s is installed in namespace %s (it was %s; revision %d).", chart.Version(), namespace, current.Version, done.Number)
	env.Notef("Look whether all is well:  ambit check%s", command.InMesh(namespace))
	return nil
}

// older tells whether version a is a release older than the release b.
func older(a, b string) bool {
	return semver.IsValid(a) && semver.IsValid(b) && semver.Compare(a, b) < 0
}

// wayBack tells how to undo an upgrade that stopped.
func wayBack(env *command.Env, releases *release.Releases, start *release.Revision, namespace string) {
	to := start
	if !stages.Complete(start) {
		history, err := releases.History()
		if err != nil {
			return
		}
		if to = stages.LastComplete(history, start.Number); to == nil {
			return
		}
	}
	env.Notef("The upgrade has stopped. Parts that come later are as they were, and captured pods go on.")
	env.Notef("Mend the cause and run ambit upgrade again, or go back to revision %d (%s):", to.Number, to.Version)
	env.Notef("  ambit rollback --to %d%s    (or: helm -n %s rollback %s %d)", to.Number, command.InMesh(namespace), namespace, release.Name, to.Number)
}
