// Package versions is `ambit version`: of this client, and of what runs in the cluster, pod by pod, so that a rollout in
// progress shows as what it is.
package versions

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// Answer is the answer with -o; its names are stable.
type Answer struct {
	Client       string `json:"client"`
	Namespace    string `json:"namespace,omitempty"`
	ControlPlane []Pods `json:"controlPlane,omitempty"`
	DataPlane    []Pods `json:"dataPlane,omitempty"`
}

// Pods are the running pods of one part that have the same version.
type Pods struct {
	Part    string `json:"part"`
	Version string `json:"version"`
	Image   string `json:"image"`
	Pods    int    `json:"pods"`
}

// New makes the command.
func New(env *command.Env) *cobra.Command {
	var format string
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this client, the control plane and the data plane",
		Args:  command.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := console.CheckFormat(format); err != nil {
				return err
			}
			return run(cmd.Context(), env, format, clientOnly)
		},
	}
	env.NamespaceFlag(cmd.Flags())
	cmd.Flags().StringVarP(&format, "output", "o", "", "json or yaml")
	cmd.Flags().BoolVar(&clientOnly, "client", false, "show this client's version only; needs no cluster")
	return cmd
}

func run(ctx context.Context, env *command.Env, format string, clientOnly bool) error {
	answer := Answer{Client: env.Version}
	var clusterErr error
	if !clientOnly {
		clusterErr = ask(ctx, env, &answer)
	}
	// The client's version is an answer even where the cluster gives none.
	if format != "" {
		if err := env.Object(format, answer); err != nil {
			return err
		}
		return clusterErr
	}
	table := tabwriter.NewWriter(env.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "client\t%s\n", answer.Client)
	for _, p := range append(slices.Clone(answer.ControlPlane), answer.DataPlane...) {
		fmt.Fprintf(table, "%s\t%s\t%s\n", p.Part, p.Version, console.Plural(p.Pods, "pod"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if clusterErr == nil && !clientOnly && answer.ControlPlane == nil && answer.DataPlane == nil {
		env.Notef("No mesh is installed in this cluster.")
	}
	return clusterErr
}

func ask(ctx context.Context, env *command.Env, answer *Answer) error {
	cluster, _, err := env.Connect(ctx)
	if err != nil {
		return err
	}
	namespace, parts, err := env.FindMesh(ctx, cluster)
	if err != nil || len(parts) == 0 {
		return err
	}
	answer.Namespace = namespace
	for _, part := range parts {
		pods, err := running(ctx, cluster.Kubernetes, part)
		if err != nil {
			return err
		}
		if part.Component == survey.ControlPlane {
			answer.ControlPlane = append(answer.ControlPlane, pods...)
		} else {
			answer.DataPlane = append(answer.DataPlane, pods...)
		}
	}
	waypoints, err := count(ctx, cluster.Kubernetes, metav1.NamespaceAll, labels.Set{api.LabelGatewayManaged: api.GatewayManagedWaypoint}, "waypoint")
	if apierrors.IsForbidden(err) {
		env.Notef("Waypoints are not shown, since you may not list the pods of all namespaces.")
		return nil
	}
	answer.DataPlane = append(answer.DataPlane, waypoints...)
	return err
}

// running counts the pods of a part by version and image.
func running(ctx context.Context, client kubernetes.Interface, part survey.Part) ([]Pods, error) {
	return count(ctx, client, part.Namespace, part.Selector, part.Component.Title())
}

// count counts the running pods that have labels.
func count(ctx context.Context, client kubernetes.Interface, namespace string, having labels.Set, part string) ([]Pods, error) {
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(having).String()})
	if err != nil {
		return nil, fmt.Errorf("list Pods: %w", err)
	}
	counts := map[Pods]int{}
	for _, pod := range list.Items {
		if pod.Status.Phase != corev1.PodRunning || len(pod.Spec.Containers) == 0 {
			continue
		}
		counts[Pods{Part: part, Version: pod.Labels[api.LabelVersion], Image: pod.Spec.Containers[0].Image}]++
	}
	var all []Pods
	for pods, n := range counts {
		pods.Pods = n
		all = append(all, pods)
	}
	slices.SortFunc(all, func(a, b Pods) int { return cmp.Or(cmp.Compare(a.Version, b.Version), cmp.Compare(a.Image, b.Image)) })
	return all, nil
}
