package check

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/survey"
)

type options struct {
	pre        bool
	preUpgrade bool
	namespace  string
	format     string
}

const long = `Check looks at the running mesh, or with --pre at a cluster that is to get one, or with --pre-upgrade at both the running
mesh and what an upgrade by this ambit would meet. Every failure comes with a hint.

Exit codes: 0 nothing failed, though there may be warnings; 1 something failed; 2 the command line is wrong; 3 the cluster cannot
be reached.`

// New makes the command.
func New(env *command.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the running mesh, or a cluster before an install or upgrade",
		Long:  long,
		Args:  command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.pre && o.preUpgrade {
				return console.Usagef("--pre and --pre-upgrade exclude each other")
			}
			if err := console.CheckFormat(o.format); err != nil {
				return err
			}
			return run(cmd.Context(), env, o)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&o.pre, "pre", false, "check whether a mesh can be installed")
	flags.BoolVar(&o.preUpgrade, "pre-upgrade", false, "check whether the mesh can be upgraded by this ambit")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "look at the pods of this namespace only")
	flags.StringVarP(&o.format, "output", "o", "", "json or yaml")
	return cmd
}

// checker is one run over a cluster.
type checker struct {
	Report
	ctx     context.Context
	cluster *kube.Cluster
	// client is the version of this ambit, kubernetes that of the cluster.
	client, kubernetes string
	// mesh is the mesh's namespace, only the one whose pods are looked at, or empty.
	mesh, only string
	parts      []survey.Part
}

func run(ctx context.Context, env *command.Env, o options) error {
	cluster, version, err := env.Connect(ctx)
	if err != nil {
		return err
	}
	namespace, parts, err := env.FindMesh(ctx, cluster)
	if err != nil {
		return err
	}
	c := &checker{
		ctx: ctx, cluster: cluster, client: env.Version, kubernetes: version,
		mesh: namespace, only: o.namespace, parts: parts,
	}
	switch {
	case o.pre:
		c.beforeInstall()
	case o.preUpgrade:
		c.beforeUpgrade()
	default:
		c.running()
	}
	c.close()
	if o.format != "" {
		if err := env.Object(o.format, c.Report); err != nil {
			return err
		}
	} else {
		c.print(env.Console)
	}
	if c.Verdict == Fail {
		return console.ErrTold
	}
	return nil
}

func (c *checker) beforeInstall() {
	c.group("Cluster")
	c.kubernetesVersion()
	c.permissions()
	c.group("Nodes")
	c.nodes()
	c.networkPlugin()
	c.group("Room for a mesh")
	c.otherMeshes()
	c.podSecurity()
	c.definitions()
	c.group("Policies")
	c.policies()
	c.authentications()
}

func (c *checker) beforeUpgrade() {
	c.group("Cluster")
	c.kubernetesVersion()
	c.permissions()
	c.group("Installation")
	c.installation()
	c.definitions()
	c.running()
}

func (c *checker) running() {
	c.group("Control plane")
	if len(c.parts) == 0 {
		c.fail("install one: ambit check --pre, then ambit install; or name another namespace by -i", "no mesh is installed in namespace %s", c.mesh)
		return
	}
	c.controlPlane()
	c.meshSettings()
	c.trustBundles()
	c.group("Nodes")
	c.nodeParts()
	c.group("Pods")
	if c.namespaceMissing() {
		return
	}
	c.enrolment()
	c.group("Waypoints")
	c.waypoints()
	c.group("Policies")
	c.policies()
	c.authentications()
}
