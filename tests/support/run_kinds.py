"""
The kinds of DAG runs, each with its expected data interval and the window that it must request, or the error.

Plain values for the DAG file and the tests, written by hand. Times are in UTC; "the run" is the time it was created.
"""

from __future__ import annotations

from dataclasses import dataclass

DAY = "window=timedelta(days=1)"
GIVEN = 'start="2026-01-12T00:00:00Z", end="2026-01-13T00:00:00Z"'

CRON_INTERVAL = 'CronDataIntervalTimetable("@daily", timezone="UTC")'
DELTA_INTERVAL = "DeltaDataIntervalTimetable(timedelta(days=1))"
CRON_TRIGGER = 'CronTriggerTimetable("@daily", timezone="UTC")'
CRON_TRIGGER_INTERVAL = 'CronTriggerTimetable("@daily", timezone="UTC", interval=timedelta(days=1))'
PARTITION = 'CronPartitionTimetable("@daily", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d")'
ASSET, PARTITIONED_ASSET = "unleash_rows", "unleash_partitions"

JAN_11 = "2026-01-11T00:00Z → 2026-01-12T00:00Z (24 h)"
JAN_12 = "2026-01-12T00:00Z → 2026-01-13T00:00Z (24 h)"
NOON = "2026-01-11T12:00Z → 2026-01-12T12:00Z (24 h)"
UP_TO_RUN = "the 24 h up to the run"
LAST_DAY = "the last whole day before the run"

NONE = "none"
EMPTY = "empty, at 2026-01-12T00:00Z"
EMPTY_AT_NOON = "empty, at 2026-01-12T12:00Z"
EMPTY_AT_RUN = "empty, at the run"
DATE_11 = "none; partition date 2026-01-11T00:00Z"
DATE_12 = "none; partition date 2026-01-12T00:00Z"


@dataclass(frozen=True)
class Outcome:
    """
    The outcome of a run.

    :param interval: the data interval that Airflow gave the run.
    :param asked: the window that was requested from the API.
    :param rule: the rule that chose the window, or the first sentence of a failed task's error.
    """

    interval: str
    asked: str
    rule: str

    def __str__(self) -> str:
        return f"data interval  {self.interval}\nasked          {self.asked}\nrule           {self.rule}"


@dataclass(frozen=True)
class RunKind:
    """
    A DAG with one task, and its run.

    :param dag_id: also the id of its device, so that its requests can be told apart.
    :param section: its section in the documentation.
    :param run: how the run is created: an ``airflow`` command, a request to Airflow's API, or a description.
    :param schedule: Python source code.
    :param task: Python source code of the task arguments that matter here.
    :param dates: of a scheduled DAG, from its start date to its end date. The last run counts.
    :param timezone: time zone of these dates, and so of the DAG.
    :param outlet: the asset that its task updates.
    """

    dag_id: str
    section: str
    run: str
    schedule: str
    task: str
    expected: Outcome
    dates: tuple[str, ...] = ()
    timezone: str = "UTC"
    outlet: str = ""

    def __str__(self) -> str:
        return f"{self.run}, schedule={self.schedule}" + (f", {self.task}" if self.task else "")


def _no_window(run: str, interval: str, problem: str) -> Outcome:
    return Outcome(interval, "nothing", f"error: This {run} run has {problem}, so it does not define a time window.")


def _empty(run: str, interval: str = EMPTY) -> Outcome:
    return _no_window(run, interval, "an empty data interval (start equals end)")


def _absent(run: str, interval: str = NONE) -> Outcome:
    return _no_window(run, interval, "no data interval")


def _scheduled(
    dag_id: str, schedule: str, task: str, expected: Outcome, *dates: str, run: str = "scheduled", outlet: str = ""
) -> RunKind:
    dates = dates or ("2026-01-12",)
    return RunKind(dag_id, "Scheduled runs", run, schedule, task, expected, dates=dates, outlet=outlet)


SCHEDULED = [
    _scheduled("daily", '"@daily"', "", _empty("scheduled")),
    _scheduled("daily_window", '"@daily"', DAY, Outcome(EMPTY, JAN_11, "window")),
    _scheduled("delta", "timedelta(days=1)", "", _empty("scheduled")),
    _scheduled("delta_window", "timedelta(days=1)", DAY, Outcome(EMPTY, JAN_11, "window")),
    _scheduled("once", '"@once"', "", _empty("scheduled")),
    _scheduled("once_window", '"@once"', DAY, Outcome(EMPTY, JAN_11, "window")),
    _scheduled("trigger", CRON_TRIGGER, "", _empty("scheduled")),
    _scheduled("trigger_window", CRON_TRIGGER, DAY, Outcome(EMPTY, JAN_11, "window")),
    _scheduled(
        *("trigger_interval", CRON_TRIGGER_INTERVAL, "", Outcome(JAN_11, JAN_11, "data_interval")),
        *("2026-01-11", "2026-01-12"),
    ),
    # Airflow leaves tasks out of a run whose logical date is before their start date.
    _scheduled(
        *("trigger_interval_first", CRON_TRIGGER_INTERVAL, "", Outcome(JAN_11, "nothing", "the run has no task")),
        run="scheduled, first run of the DAG",
    ),
    _scheduled("cron_interval", CRON_INTERVAL, "", Outcome(JAN_12, JAN_12, "data_interval")),
    _scheduled("cron_interval_window", CRON_INTERVAL, DAY, Outcome(JAN_12, JAN_12, "data_interval")),
    _scheduled("cron_interval_given", CRON_INTERVAL, GIVEN, Outcome(JAN_12, JAN_12, "start_end")),
    _scheduled("delta_interval", DELTA_INTERVAL, "", Outcome(JAN_12, JAN_12, "data_interval")),
    _scheduled("partition", PARTITION, "", _absent("scheduled", DATE_11)),
    _scheduled(
        "partition_window", PARTITION, DAY, Outcome(DATE_11, JAN_11, "partition_date"), outlet=PARTITIONED_ASSET
    ),
]


def _clock(
    dag_id: str, date: str, schedule: str, interval: str, asked: str, rule: str, timezone: str = "UTC", task: str = DAY
) -> RunKind:
    expected = Outcome(interval, asked, rule)
    run = f"scheduled, DAG in {timezone}"
    return RunKind(dag_id, "When clocks change", run, schedule, task, expected, dates=(date,), timezone=timezone)


def _partition(
    dag_id: str, date: str, schedule: str, partition_date: str, asked: str, timezone: str = "UTC"
) -> RunKind:
    interval = f"none; partition date {partition_date}"
    return _clock(dag_id, date, schedule, interval, asked, "partition_date", timezone)


BERLIN, SYDNEY = "Europe/Berlin", "Australia/Sydney"
IN_BERLIN = 'CronDataIntervalTimetable("@daily", timezone="Europe/Berlin")'
IN_SYDNEY = 'CronDataIntervalTimetable("@daily", timezone="Australia/Sydney")'
TRIGGER_IN_BERLIN = 'CronTriggerTimetable("@daily", timezone="Europe/Berlin")'
PARTITION_IN_BERLIN = 'CronPartitionTimetable("@daily", timezone="Europe/Berlin", run_offset=-1)'
PARTITION_IN_SYDNEY = 'CronPartitionTimetable("@daily", timezone="Australia/Sydney", run_offset=-1)'

BERLIN_23 = "2026-03-28T23:00Z → 2026-03-29T22:00Z (23 h)"
BERLIN_25 = "2026-10-24T22:00Z → 2026-10-25T23:00Z (25 h)"
SYDNEY_23 = "2026-10-03T14:00Z → 2026-10-04T13:00Z (23 h)"
SYDNEY_25 = "2026-04-04T13:00Z → 2026-04-05T14:00Z (25 h)"

CLOCKS = [
    _clock("berlin_23_interval", "2026-03-29", IN_BERLIN, BERLIN_23, BERLIN_23, "data_interval", BERLIN, ""),
    _clock("berlin_25_interval", "2026-10-25", IN_BERLIN, BERLIN_25, BERLIN_25, "data_interval", BERLIN, ""),
    _clock("sydney_23_interval", "2026-10-04", IN_SYDNEY, SYDNEY_23, SYDNEY_23, "data_interval", SYDNEY, ""),
    _clock("sydney_25_interval", "2026-04-05", IN_SYDNEY, SYDNEY_25, SYDNEY_25, "data_interval", SYDNEY, ""),
    _clock("berlin_23", "2026-03-30", '"@daily"', "empty, at 2026-03-29T22:00Z", BERLIN_23, "window", BERLIN),
    _clock("berlin_25", "2026-10-26", '"@daily"', "empty, at 2026-10-25T23:00Z", BERLIN_25, "window", BERLIN),
    _clock("sydney_23", "2026-10-05", '"@daily"', "empty, at 2026-10-04T13:00Z", SYDNEY_23, "window", SYDNEY),
    _clock("sydney_25", "2026-04-06", '"@daily"', "empty, at 2026-04-05T14:00Z", SYDNEY_25, "window", SYDNEY),
    _partition("berlin_23_partition", "2026-03-30", PARTITION_IN_BERLIN, "2026-03-28T23:00Z", BERLIN_23, BERLIN),
    _partition("berlin_25_partition", "2026-10-26", PARTITION_IN_BERLIN, "2026-10-24T22:00Z", BERLIN_25, BERLIN),
    _partition("sydney_23_partition", "2026-10-05", PARTITION_IN_SYDNEY, "2026-10-03T14:00Z", SYDNEY_23, SYDNEY),
    _partition("sydney_25_partition", "2026-04-06", PARTITION_IN_SYDNEY, "2026-04-04T13:00Z", SYDNEY_25, SYDNEY),
    # The DAG is in UTC, but whole days are those of the timetable.
    _clock("utc_25", "2026-10-25T23:00", TRIGGER_IN_BERLIN, "empty, at 2026-10-25T23:00Z", BERLIN_25, "window"),
    _partition("utc_25_partition", "2026-10-25T23:00", PARTITION_IN_BERLIN, "2026-10-24T22:00Z", BERLIN_25),
]


def _by_asset(dag_id: str, schedule: str, task: str, expected: Outcome) -> RunKind:
    return RunKind(dag_id, "Asset-triggered runs", "an asset update", schedule, task, expected)


ON_ASSET = f'[Asset("{ASSET}")]'
ON_PARTITIONS = f'PartitionedAssetTimetable(assets=Asset("{PARTITIONED_ASSET}"))'

ASSETS = [
    _by_asset("asset", ON_ASSET, "", _absent("asset-triggered")),
    _by_asset("asset_window", ON_ASSET, DAY, Outcome(NONE, UP_TO_RUN, "window")),
    _by_asset("asset_given", ON_ASSET, GIVEN, Outcome(NONE, JAN_12, "start_end")),
    _by_asset("partitions", ON_PARTITIONS, "", _absent("asset-triggered", DATE_11)),
    _by_asset("partitions_window", ON_PARTITIONS, DAY, Outcome(DATE_11, JAN_11, "partition_date")),
]


TRIGGER = "airflow dags trigger DAG"
TRIGGER_AT = "airflow dags trigger DAG -l 2026-01-12T12:00:00Z"


def _by_command(dag_id: str, run: str, schedule: str, task: str, expected: Outcome, outlet: str = "") -> RunKind:
    return RunKind(dag_id, "airflow dags trigger", run, schedule, task, expected, outlet=outlet)


# With -l, Airflow sets the given logical date, but takes the data interval from the time of the command.
TRIGGERED = [
    _by_command("cli_daily", TRIGGER, '"@daily"', "", _absent("manual")),
    _by_command("cli_daily_window", TRIGGER, '"@daily"', DAY, Outcome(NONE, UP_TO_RUN, "window"), ASSET),
    _by_command("cli_interval", TRIGGER, CRON_INTERVAL, "", _absent("manual")),
    _by_command("cli_interval_window", TRIGGER, CRON_INTERVAL, DAY, Outcome(NONE, UP_TO_RUN, "window")),
    _by_command("cli_none", TRIGGER, "None", "", _absent("manual")),
    _by_command("cli_none_window", TRIGGER, "None", DAY, Outcome(NONE, UP_TO_RUN, "window")),
    _by_command("cli_none_given", TRIGGER, "None", GIVEN, Outcome(NONE, JAN_12, "start_end")),
    _by_command("cli_at_daily", TRIGGER_AT, '"@daily"', "", _empty("manual", EMPTY_AT_RUN)),
    _by_command("cli_at_daily_window", TRIGGER_AT, '"@daily"', DAY, Outcome(EMPTY_AT_RUN, NOON, "window")),
    _by_command("cli_at_interval", TRIGGER_AT, CRON_INTERVAL, "", Outcome(LAST_DAY, LAST_DAY, "data_interval")),
    _by_command("cli_at_none", TRIGGER_AT, "None", "", _empty("manual", EMPTY_AT_RUN)),
    _by_command("cli_at_none_window", TRIGGER_AT, "None", DAY, Outcome(EMPTY_AT_RUN, NOON, "window")),
]


POST = 'POST {"logical_date": null}'
POST_AT = 'POST {"logical_date": "2026-01-12T12:00:00Z"}'
POST_KEY = 'POST {"logical_date": null, "partition_key": "2026-01-12"}'
POST_INTERVAL = (
    'POST {"logical_date": "2026-01-12T00:00:00Z", '
    '"data_interval_start": "2026-01-12T00:00:00Z", "data_interval_end": "2026-01-13T00:00:00Z"}'
)


def _by_post(dag_id: str, run: str, schedule: str, task: str, expected: Outcome) -> RunKind:
    return RunKind(dag_id, "REST API and web interface", run, schedule, task, expected)


POSTED = [
    _by_post("rest_daily", POST, '"@daily"', "", _absent("manual")),
    _by_post("rest_daily_window", POST, '"@daily"', DAY, Outcome(NONE, UP_TO_RUN, "window")),
    _by_post("rest_interval", POST, CRON_INTERVAL, "", _absent("manual")),
    _by_post("rest_interval_window", POST, CRON_INTERVAL, DAY, Outcome(NONE, UP_TO_RUN, "window")),
    _by_post("rest_at_daily", POST_AT, '"@daily"', "", _empty("manual", EMPTY_AT_NOON)),
    _by_post("rest_at_daily_window", POST_AT, '"@daily"', DAY, Outcome(EMPTY_AT_NOON, NOON, "window")),
    _by_post("rest_at_interval", POST_AT, CRON_INTERVAL, "", Outcome(JAN_11, JAN_11, "data_interval")),
    _by_post("rest_at_delta_interval", POST_AT, DELTA_INTERVAL, "", Outcome(NOON, NOON, "data_interval")),
    _by_post("rest_at_trigger_interval", POST_AT, CRON_TRIGGER_INTERVAL, "", Outcome(NOON, NOON, "data_interval")),
    _by_post("rest_given_daily", POST_INTERVAL, '"@daily"', "", Outcome(JAN_12, JAN_12, "data_interval")),
    _by_post("rest_given_none", POST_INTERVAL, "None", "", Outcome(JAN_12, JAN_12, "data_interval")),
    _by_post("rest_key_partition", POST_KEY, PARTITION, "", _absent("manual", DATE_12)),
    _by_post("rest_key_partition_window", POST_KEY, PARTITION, DAY, Outcome(DATE_12, JAN_12, "partition_date")),
    _by_post("rest_partition", POST, PARTITION, "", _absent("manual")),
    _by_post("rest_partition_window", POST, PARTITION, DAY, Outcome(NONE, UP_TO_RUN, "window")),
]


BACKFILL = "airflow backfill create --dag-id DAG --from-date 2026-01-12 --to-date 2026-01-12"


def _by_backfill(dag_id: str, schedule: str, task: str, expected: Outcome) -> RunKind:
    return RunKind(dag_id, "Backfills", BACKFILL, schedule, task, expected)


BACKFILLED = [
    _by_backfill("backfill_daily", '"@daily"', "", _empty("backfill")),
    _by_backfill("backfill_daily_window", '"@daily"', DAY, Outcome(EMPTY, JAN_11, "window")),
    _by_backfill("backfill_delta_window", "timedelta(days=1)", DAY, Outcome(EMPTY, JAN_11, "window")),
    _by_backfill("backfill_trigger_window", CRON_TRIGGER, DAY, Outcome(EMPTY, JAN_11, "window")),
    _by_backfill("backfill_trigger_interval", CRON_TRIGGER_INTERVAL, "", Outcome(JAN_11, JAN_11, "data_interval")),
    _by_backfill("backfill_cron_interval", CRON_INTERVAL, "", Outcome(JAN_12, JAN_12, "data_interval")),
    _by_backfill("backfill_delta_interval", DELTA_INTERVAL, "", Outcome(JAN_12, JAN_12, "data_interval")),
    _by_backfill("backfill_partition", PARTITION, "", _absent("backfill", DATE_12)),
    _by_backfill("backfill_partition_window", PARTITION, DAY, Outcome(DATE_12, JAN_12, "partition_date")),
]


TEST = "airflow dags test DAG"
TEST_AT = "airflow dags test DAG 2026-01-12T12:00:00Z"


def _by_test(dag_id: str, run: str, schedule: str, task: str, expected: Outcome) -> RunKind:
    return RunKind(dag_id, "airflow dags test", run, schedule, task, expected)


TESTED = [
    _by_test("test_daily", TEST, '"@daily"', "", _empty("manual", EMPTY_AT_RUN)),
    _by_test("test_daily_window", TEST, '"@daily"', DAY, Outcome(EMPTY_AT_RUN, UP_TO_RUN, "window")),
    _by_test("test_interval", TEST, CRON_INTERVAL, "", Outcome(LAST_DAY, LAST_DAY, "data_interval")),
    _by_test("test_delta_interval", TEST, DELTA_INTERVAL, "", Outcome(UP_TO_RUN, UP_TO_RUN, "data_interval")),
    _by_test("test_partition_window", TEST, PARTITION, DAY, Outcome(EMPTY_AT_RUN, UP_TO_RUN, "window")),
    _by_test("test_at_daily", TEST_AT, '"@daily"', "", _empty("manual", EMPTY_AT_NOON)),
    _by_test("test_at_daily_window", TEST_AT, '"@daily"', DAY, Outcome(EMPTY_AT_NOON, NOON, "window")),
    _by_test("test_at_interval", TEST_AT, CRON_INTERVAL, "", Outcome(JAN_11, JAN_11, "data_interval")),
    _by_test("test_at_none_window", TEST_AT, "None", DAY, Outcome(EMPTY_AT_NOON, NOON, "window")),
]

RUN_KINDS = [*SCHEDULED, *CLOCKS, *ASSETS, *TRIGGERED, *POSTED, *BACKFILLED, *TESTED]

# These tasks return rows, the others write them.
TO_XCOM = {"daily_window", "cron_interval", "berlin_25", "partitions_window", "test_at_daily_window"}
