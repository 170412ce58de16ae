// Package install is `ambit install`: it puts the chart into the cluster after making sure that nobody else's mesh is in
// the way, and waits until it works. Run again, it brings what is there to what is asked for.
package install

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/crd"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/cli/rollout"
	"github.com/ambit-mesh/ambit/cli/survey"
	"github.com/ambit-mesh/ambit/deploy"
)

// defaultTimeout is how long the parts may take to become ready, images pulled included.
const defaultTimeout = 5 * time.Minute

// applyTimeout bounds applying, which takes seconds unless an earlier mesh's namespace has to go first.
const applyTimeout = 3 * time.Minute

// besideBundle is the ConfigMap of the trust bundle beside another control plane, which keeps its own in every namespace.
const besideBundle = "ambit-ca-root-cert"

// besideCRL is likewise that of revocation lists.
const besideCRL = "ambit-ca-crl"

type options struct {
	values      release.Values
	dryRun      bool
	includeCRDs bool
	skipCRDs    bool
	beside      bool
	noWait      bool
	timeout     time.Duration
}

const example = `  ambit install
  ambit install --set istiod.replicas=3 -f values.yaml
  ambit install --dry-run > ambit.yaml`

// New makes the command.
func New(env *command.Env) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:     "install",
		Short:   "Install the mesh in the cluster",
		Long:    "Install applies the Helm chart of this version with its custom resource definitions, and waits until every part is ready.",
		Example: example,
		Args:    command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return run(cmd.Context(), env, o)
		},
	}
	flags := cmd.Flags()
	env.NamespaceFlag(flags)
	ValuesFlags(cmd, &o.values)
	flags.BoolVar(&o.dryRun, "dry-run", false, "print the YAML and change nothing; needs no cluster")
	flags.BoolVar(&o.includeCRDs, "include-crds", false, "with --dry-run: print the custom resource definitions too")
	flags.BoolVar(&o.skipCRDs, "skip-crds", false, "leave the custom resource definitions to others")
	flags.BoolVar(&o.beside, "beside", false, "stand beside another mesh, in a namespace of its own")
	flags.BoolVar(&o.noWait, "no-wait", false, "do not wait until the parts are ready")
	flags.DurationVar(&o.timeout, "timeout", defaultTimeout, "how long the parts may take to become ready")
	return cmd
}

// ValuesFlags adds the flags with which the user gives values to the chart.
func ValuesFlags(cmd *cobra.Command, v *release.Values) {
	cmd.Flags().StringArrayVarP(&v.Files, "values", "f", nil, "YAML file of values, or - for standard input (repeatable)")
	cmd.Flags().StringArrayVar(&v.Set, "set", nil, "a value, such as ztunnel.logLevel=debug (repeatable)")
	cmd.Flags().StringArrayVar(&v.SetString, "set-string", nil, "a value that is a string (repeatable)")
}

func run(ctx context.Context, env *command.Env, o options) error {
	vals, err := o.values.Merge()
	if err != nil {
		return &console.Error{Code: console.ExitUsage, Err: err}
	}
	for value, name := range map[string]string{"rootCertConfigMap": besideBundle, "crlConfigMap": besideCRL} {
		if _, given := vals[value]; o.beside && !given {
			vals[value] = name
		}
	}
	namespace := env.InstallNamespace()
	chart, err := release.Load(env.Version, o.dryRun && o.includeCRDs)
	if err != nil {
		return err
	}
	// Rendered first in any case: values that the chart refuses are told before anything is touched.
	manifest, err := chart.Render(ctx, namespace, vals)
	if err != nil {
		return &console.Error{Code: console.ExitUsage, Err: err}
	}
	if o.dryRun {
		return printYAML(env, namespace, manifest, o)
	}
	cluster, version, err := env.Connect(ctx)
	if err != nil {
		return err
	}
	env.Notef("Installing ambit %s in namespace %s (Kubernetes %s)", chart.Version(), namespace, version)
	if err := refuseOthers(ctx, cluster.Kubernetes, namespace, vals, o.beside); err != nil {
		return err
	}
	applyCtx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if err := apply(applyCtx, env, cluster, chart, namespace, vals, o.skipCRDs); err != nil {
		return err
	}
	if o.noWait {
		env.Notef("Not waiting. Look later: ambit check%s", command.InMesh(namespace))
		return nil
	}
	env.Notef("Waiting until the parts are ready")
	waiter := &rollout.Waiter{Client: cluster.Kubernetes, Namespace: namespace, Note: env.Notef}
	waitCtx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if err := waiter.Wait(waitCtx, survey.Components...); err != nil {
		return explain(env, err, namespace)
	}
	env.Printf("ambit %s is installed in namespace %s.", chart.Version(), namespace)
	env.Notef("Put a namespace into the mesh:  kubectl label namespace NAME %s=%s", api.LabelDataplaneMode, api.DataplaneModeAmbient)
	env.Notef("Look whether all is well:       ambit check%s", command.InMesh(namespace))
	return nil
}

// printYAML is --dry-run.
func printYAML(env *command.Env, namespace, manifest string, o options) error {
	fmt.Fprintf(env.Out, "---\n# The namespace, which Helm does not make by itself.\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: %s\n  labels:\n    %s: %s\n",
		namespace, podSecurity, "privileged")
	fmt.Fprint(env.Out, manifest)
	if !o.includeCRDs {
		env.Notef("Without the custom resource definitions: --include-crds prints them too.")
	}
	return nil
}

// explain tells what keeps the parts, and ends the command.
func explain(env *command.Env, err error, namespace string) error {
	var notReady *rollout.NotReadyError
	if !errors.As(err, &notReady) {
		return err
	}
	for _, line := range notReady.Troubles {
		env.Notef("  %s", line)
	}
	env.Notef("What was applied stays. See more:  kubectl -n %s get pods,events", namespace)
	env.Notef("Mend the cause and run ambit install again, or remove it:  ambit uninstall%s", command.InMesh(namespace))
	return err
}

// apply does everything up to the point where only waiting is left.
func apply(ctx context.Context, env *command.Env, cluster *kube.Cluster, chart *release.Chart, namespace string, vals map[string]any, skipCRDs bool) error {
	releases, err := release.Open(cluster, namespace)
	if err != nil {
		return err
	}
	current, err := releases.Current()
	if err != nil {
		return err
	}
	if current == nil {
		if err := refuseUnmanaged(ctx, cluster.Kubernetes, namespace); err != nil {
			return err
		}
	} else if current.Status == "deployed" && current.Version != chart.Version() {
		return fmt.Errorf("ambit %s is installed in namespace %s already: use ambit upgrade%s to go to %s",
			current.Version, namespace, command.InMesh(namespace), chart.Version())
	}
	if err := ensureNamespace(ctx, cluster.Kubernetes, namespace); err != nil {
		return err
	}
	if !skipCRDs {
		if err := ApplyCRDs(ctx, env, cluster); err != nil {
			return err
		}
	}
	if current == nil || current.Status == "uninstalled" {
		_, err = releases.Install(ctx, chart, vals)
	} else {
		env.Notef("Revision %d is there (%s): applying over it", current.Number, current.Status)
		_, err = releases.Upgrade(ctx, chart, vals, nil, "ambit install "+chart.Version())
	}
	if err != nil {
		return fmt.Errorf("apply the chart: %w", err)
	}
	return nil
}

// ApplyCRDs brings the custom resource definitions into the cluster and tells what it did.
func ApplyCRDs(ctx context.Context, env *command.Env, cluster *kube.Cluster) error {
	texts, err := deploy.CRDs()
	if err != nil {
		return err
	}
	ours, err := crd.Parse(texts)
	if err != nil {
		return err
	}
	steps, err := crd.Apply(ctx, cluster.Dynamic, ours)
	counts := map[crd.Action]int{}
	for _, step := range steps {
		counts[step.Action]++
	}
	env.Notef("Custom resource definitions: %d created, %d updated, %d unchanged, %d left alone",
		counts[crd.Create], counts[crd.Update], counts[crd.Unchanged], counts[crd.LeaveBe])
	for _, step := range steps {
		if step.Action == crd.LeaveBe {
			env.Notef("  %s left alone: %s", step.Name, step.Reason)
		}
	}
	return err
}

// MadeLabel and MadeValue mark a namespace that install made, so that uninstall may remove it.
const (
	MadeLabel = api.LabelManagedBy
	MadeValue = "ambit-install"
)

// podSecurity is the label with which a namespace of Kubernetes' pod security admission lets our node parts in.
const podSecurity = "pod-security.kubernetes.io/enforce"

// ensureNamespace makes the mesh's namespace, with the label that lets the node parts in. One that exists is left as it is.
func ensureNamespace(ctx context.Context, client kubernetes.Interface, name string) error {
	ns, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if err == nil && ns.DeletionTimestamp == nil {
		return nil
	}
	if err == nil { // an earlier mesh's, on its way out
		if err := AwaitNoNamespace(ctx, client, name); err != nil {
			return err
		}
	}
	_, err = client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{podSecurity: "privileged", MadeLabel: MadeValue},
	}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

// namespaceTimeout is how long Kubernetes may take to empty a namespace.
const namespaceTimeout = time.Minute

// AwaitNoNamespace waits until a namespace that is being deleted is gone.
func AwaitNoNamespace(ctx context.Context, client kubernetes.Interface, name string) error {
	err := wait.PollUntilContextTimeout(ctx, 250*time.Millisecond, namespaceTimeout, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("wait until namespace %s is gone: %w", name, err)
	}
	return nil
}

// refuseUnmanaged refuses to install over parts that something other than this Helm release made, such as GitOps.
func refuseUnmanaged(ctx context.Context, client kubernetes.Interface, namespace string) error {
	parts, err := survey.Parts(ctx, client, namespace)
	if err != nil || len(parts) == 0 {
		return err
	}
	var names []string
	for _, p := range parts {
		names = append(names, p.Kind+" "+p.Name)
	}
	return fmt.Errorf("ambit's parts are in namespace %s already (%s), without a Helm release %q: install and upgrade it with what installed it",
		namespace, strings.Join(names, ", "), release.Name)
}
