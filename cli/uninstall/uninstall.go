// Package uninstall is `ambit uninstall`. It lets go of the pods first: the agents un-enrol every pod and clean their nodes
// while the node proxies still carry what is open; only then are the parts deleted. Users' labels are never touched.
package uninstall

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/crd"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/cli/stages"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/deploy"
)

const (
	// defaultTimeout is how long connections that go through the mesh may take to end by themselves.
	defaultTimeout = 60 * time.Second
	// cleanTimeout is how long the agents may take to clean their nodes after that.
	cleanTimeout = 60 * time.Second
	// deleteTimeout is how long the pods of a part may take to go: a grace period and some.
	deleteTimeout = 2 * time.Minute
)

type options struct {
	timeout   time.Duration
	purgeCRDs bool
	force     bool
}

const long = `Uninstall removes the mesh. It un-enrols all pods first: new connections go in plain at once, and those that go through the
mesh may end by themselves until --timeout; what is left then is cut, and counted. Then it removes every part, what the parts made,
and what the agents put on the nodes.

Labels stay where they are, so that a later install captures the same pods again, and so do the Gateways of waypoints. Custom resource definitions stay too, with the
policies and routes in them, unless --purge-crds is given.`

// New makes the command.
func New(env *command.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Let go of all pods and remove the mesh, also from the nodes",
		Long:  long,
		Args:  command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), env, o)
		},
	}
	flags := cmd.Flags()
	env.NamespaceFlag(flags)
	flags.DurationVar(&o.timeout, "timeout", defaultTimeout, "how long connections through the mesh may take to end")
	flags.BoolVar(&o.purgeCRDs, "purge-crds", false, "delete ambit's custom resource definitions, with all policies and routes in them")
	flags.BoolVar(&o.force, "force", false, "go on where a node cannot be cleaned")
	return cmd
}

func run(ctx context.Context, env *command.Env, o options) error {
	mesh, err := stages.Find(ctx, env)
	if err != nil {
		return err
	}
	cluster, namespace, parts, releases, current := mesh.Cluster, mesh.Namespace, mesh.Parts, mesh.Releases, mesh.Current
	if current == nil && len(parts) > 0 {
		return fmt.Errorf("the parts in namespace %s were not installed as Helm release %q: remove them with what installed them", namespace, release.Name)
	}
	if current == nil {
		env.Notef("No mesh is installed in namespace %s.", namespace)
	} else {
		env.Notef("Removing ambit %s from namespace %s", current.Version, namespace)
	}
	enrolled, err := survey.Enrolled(ctx, cluster.Kubernetes, "", nil)
	if err != nil {
		return err
	}
	r := &remover{env: env, cluster: cluster, namespace: namespace, options: o, poll: time.Second}
	r.report = r.askAgent
	if err := r.remove(ctx, releases, parts, enrolled); err != nil {
		return err
	}
	if err := r.purge(ctx); err != nil {
		return err
	}
	env.Printf("ambit is removed from namespace %s.", namespace)
	if n := len(enrolled.Namespaces); n > 0 {
		env.Notef("%s still labelled %s=%s, which does nothing without a mesh; a later install captures the pods again.",
			counted(n, "namespace", "is", "are"), api.LabelDataplaneMode, api.DataplaneModeAmbient)
	}
	return nil
}

// counted is "1 pod was", "2 pods were".
func counted(n int, noun, one, many string) string {
	verb := many
	if n == 1 {
		verb = one
	}
	return console.Plural(n, noun) + " " + verb
}

// remover removes one mesh.
type remover struct {
	env       *command.Env
	cluster   *kube.Cluster
	namespace string
	options
	// poll is how often the cluster is asked.
	poll time.Duration
	// report asks the agent in a pod how far it is; see askAgent.
	report func(ctx context.Context, pod string) (agentReport, error)
	// clean says that every agent has reported its node clean: nothing goes through the node proxies any more.
	clean bool
}

func (r *remover) client() kubernetes.Interface { return r.cluster.Kubernetes }

// remove goes from the pods to the parts: what captures goes before what carries, and that before what steers.
func (r *remover) remove(ctx context.Context, releases *release.Releases, parts []survey.Part, enrolled survey.Enrolment) error {
	byComponent := map[survey.Component]*survey.Part{}
	for i := range parts {
		byComponent[parts[i].Component] = &parts[i]
	}
	if agent := byComponent[survey.Agent]; agent != nil {
		r.env.Notef("Letting go of %s in %s", console.Plural(len(enrolled.Captured()), "captured pod"),
			console.Plural(len(enrolled.Namespaces), "labelled namespace"))
		if err := r.letGo(ctx, agent); err != nil {
			return err
		}
	}
	for _, component := range []survey.Component{survey.Agent, survey.NodeProxy} {
		if p := byComponent[component]; p != nil {
			r.env.Notef("Removing the %s", component.Title())
			if err := r.deleteDaemonSet(ctx, p, component == survey.NodeProxy && r.clean); err != nil {
				return err
			}
		}
	}
	r.env.Notef("Removing the %s and the rest", survey.ControlPlane.Title())
	if err := releases.Uninstall(); err != nil {
		return err
	}
	if p := byComponent[survey.ControlPlane]; p != nil {
		// It writes as long as it lives, so what it made goes after it.
		if err := r.awaitNoPods(ctx, p); err != nil {
			return err
		}
	}
	if err := r.removeWaypoints(ctx); err != nil {
		return err
	}
	if err := r.removeMade(ctx); err != nil {
		return err
	}
	return r.stillCaptured(ctx)
}

// stillCaptured names pods that an agent left its annotation on: it had no time, or its node is away.
func (r *remover) stillCaptured(ctx context.Context) error {
	enrolled, err := survey.Enrolled(ctx, r.client(), "", nil)
	if err != nil {
		return err
	}
	if captured := enrolled.Captured(); len(captured) > 0 {
		for _, pod := range captured {
			r.env.Notef("  %s on %s is still annotated %s=%s", pod, pod.Node, api.AnnotationRedirection, pod.Redirection)
		}
		r.env.Notef("These pods may have no connection: restart them.")
		if !r.force {
			return fmt.Errorf("%s not let go of", counted(len(captured), "pod", "was", "were"))
		}
	}
	return nil
}

// purge deletes the custom resource definitions if that was asked for.
func (r *remover) purge(ctx context.Context) error {
	if !r.purgeCRDs {
		return nil
	}
	texts, err := deploy.CRDs()
	if err != nil {
		return err
	}
	ours, err := crd.Parse(texts)
	if err != nil {
		return err
	}
	steps, err := crd.Purge(ctx, r.cluster.Dynamic, ours)
	deleted := 0
	for _, step := range steps {
		if step.Action == crd.Delete {
			deleted++
			continue
		}
		r.env.Notef("  %s left alone: %s", step.Name, step.Reason)
	}
	r.env.Notef("%s deleted", counted(deleted, "custom resource definition", "was", "were"))
	return err
}

// errNotClean ends an uninstall in which a node could not be cleaned.
var errNotClean = errors.New("not every node was cleaned: mend the cause and run ambit uninstall again, or go on with --force")
