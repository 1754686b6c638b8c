"""What becomes of every field that is known: the one table that reading, refusing, ``--map``, help and docs share.

Names are written plain: ``Image-Path`` and ``imagePath`` are ``image_path``. Of several names in one row the first that
says something is read, and another is counted as not used. A field in no row is counted as not used, unless
``refused`` names it or a word in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Meaning:
    """Fields that mean the same.

    Attributes:
        level: kind of object they stand in: record, turn, part, call, setting, image.
        spelled: their plain names, with spaces between.
        becomes: what becomes of them, for people.
    """

    level: str
    spelled: str
    becomes: str

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.spelled.split())


TURN_LISTS = Meaning(
    "record", "messages dialogue dialog turns contents chat_messages message", "turns, as OpenAI and Gemini write them"
)
CONVERSATIONS = Meaning(
    "record",
    "conversations conversation chat chat_rounds trajectory items interactions data",
    "turns, as ShareGPT, LLaVA and logs of agents write them",
)
TEXTS = Meaning(
    "record",
    "texts questions qa qas qa_pairs",
    "pairs of user and assistant, all but the first only beside images; or texts, each in the place of an empty image",
)
SPEAKERS = Meaning(
    "record",
    "speakers speaker_list",
    "beside turns that are texts: whose each is; counted where two take turns, refused otherwise",
)
PROMPTS = Meaning(
    "record",
    "instruction prompt question query problem input inputs text_input input_text user human message message_1",
    "the user's turn, or turns, where an answer stands beside it",
)
PROMPT_INPUT = Meaning(
    "record",
    "input inputs context",
    "follows `instruction` or `prompt` on a line of its own, and `context` also `question`, `query` or `problem`",
)
ANSWERS = Meaning(
    "record",
    "attempt deepseek_attempt deepseek_solution generated_solution completion response output outputs targets target "
    "output_text solution answer assistant gpt generation llm_response model_response model_answer "
    "assistant_response content answers label reply message_2 reannotated_assistant_content final_answer",
    "the assistant's turn, or turns, after a prompt",
)
CALLS = Meaning("record", "answers", "beside `query` and `tools`: the tool calls that answer it")
TEXT = Meaning("record", "text", "a plain document")
CAPTIONS = Meaning(
    "record",
    "caption captions txt re_caption recaption long_caption alt_text description",
    "the text after the record's images",
)
REQUESTS = Meaning(
    "record",
    "request request_body request_json body input inputs kwargs",
    "an object, or its JSON text: what a log keeps of a request, with fields as a record has them",
)
REPLIES = Meaning(
    "record",
    "response response_body response_json choices candidates output outputs completion reply message generations",
    "what a log keeps of the answer to a request, or to turns that end without one: the answer's text, its turn, or an "
    "object around it; of several answers none is read",
)
HISTORY = Meaning(
    "record",
    "history prev_messages previous_messages chat_history conversation_history",
    "before a prompt: earlier turns, or pairs of questions and answers",
)
SYSTEMS = Meaning(
    "record",
    "system system_prompt system_message system_instruction system_instructions custom_instructions developer sys "
    "sys_prompt system_msg preprompt meta_instruction instructions",
    "the system turn, a text, its parts or the turn itself; refused where the turns begin with another one",
)
TOOLS = Meaning(
    "record",
    "tools functions tool_definitions available_tools tool_list tool_schemas available_functions function_list "
    "function_definitions apis api_list tools_json tools_schema tool_schema functions_json function",
    "offered in the system turn: a list of schemas, or its JSON text",
)
TOOL_SETTINGS = Meaning("record", "tool_config", "an object with `tools` (Bedrock)")
SETTINGS = Meaning(
    "record", "chat_template_kwargs template_kwargs", "instructions and tools; its fields are rows of their own"
)
THINKING = Meaning("record", "enable_thinking", "counted as not used; false beside reasoning is refused")
IMAGES = Meaning(
    "record",
    "images image image_paths image_path image_files image_file image_urls image_url imgs img img_paths img_path "
    "pictures picture photo image_base64 image_base64_str image_bytes jpg jpeg png webp",
    "the images, for markers and empty image parts, in order; without these, before the first question or the text. "
    "Also `image_1`, `image_2` and so on, by number",
)
PICTURE_FILES = Meaning(
    "record",
    "file_names file_name filenames filename image_names image_name image_filenames image_filename image_file_names "
    "image_file_name filepath file_path path file",
    "the images, where it names pictures and no field of the row above does",
)
POSITIONS = Meaning("record", "image_positions", "characters of `text` before which the images stand (Fast-LLM)")
SPANS = Meaning(
    "record",
    "loss_masking_spans spans",
    "pairs of the first and the last character of `text` that are not learned (Fast-LLM); refused beside turns",
)
RECORD_REASONING = Meaning(
    "record",
    "reasoning_content reasoning thinking thought thoughts think reasoning_trace reasoning_steps thinking_trajectories "
    "deepseek_thinking_trajectory deepseek_reasoning deepseek_thinking r1_reasoning gpt_reasoning model_reasoning "
    "thinking_content chain_of_thought complex_cot cot rationale thought_process reasoning_process scratchpad",
    "reasoning of the last answer, where it has none; counted as not used where an answer holds it, or for `on`, `off`",
)
WEIGHTS = Meaning(
    "record",
    "weight loss_weight sample_weight loss train training trainable",
    "1 or true changes nothing; anything else is refused",
)
MASK = Meaning("record", "mask", "the speaker whose turns are not learned: the user, and nobody else (NeMo)")

ENVELOPES = Meaning("turn", "data kwargs message", "holds the turn itself, where it is an object (LangChain, a choice)")
ROLE = Meaning("turn", "role from speaker author sender", "whose turn it is, in capital or small letters")
TURN_TYPE = Meaning(
    "turn",
    "type",
    "whose turn it is, where no role says it (LangChain, OpenAI's Responses); `message` says nothing",
)
CONTENT = Meaning("turn", "content value text utterance parts blocks message", "a text or a list of parts")
RESULT_CONTENT = Meaning("turn", "output result response", "of a result: its content, where no other field holds it")
MORE = Meaning(
    "turn", "additional_kwargs", "of the assistant: reasoning and calls, where the turn has none (LangChain)"
)
ASKED = Meaning("turn", "user human question query prompt input instruction", "the user's half of a pair")
SAID = Meaning("turn", "assistant gpt bot answer response output completion reply", "the assistant's half of a pair")
PAIR_SYSTEM = Meaning("turn", "system", "system turn before a pair")
REASONING = Meaning(
    "turn",
    "reasoning_content reasoning thinking thought thoughts think reasoning_text reasoning_trace reasoning_details "
    "thinking_content thinking_blocks chain_of_thought cot rationale tool_plan",
    "the assistant's reasoning; shown in a last turn only",
)
TOOL_CALLS = Meaning("turn", "tool_calls function_call function_calls", "the assistant's tool calls")
TURN_TOOLS = Meaning("turn", "tools functions", "of a system turn: the tools, where the record has none")
RESULT_ID = Meaning(
    "turn",
    "tool_call_id tool_use_id call_id tool_id tool_call_ids",
    "which call a result answers; results are put in that order",
)
TURN_ID = Meaning("turn", "id", "of a result: which call it answers, where it is that of one; counted otherwise")
RESULT_NAME = Meaning(
    "turn", "name tool_name", "of a result: which call it answers, where there is no id; refused if it is none"
)
TURN_IMAGES = Meaning(
    "turn",
    "images image image_paths image_path image_urls image_url imgs img",
    "images of this turn, for its own markers, or before its text",
)
MARKS = Meaning(
    "turn",
    "weight loss loss_weight loss_scale train training trainable is_trainable train_on_turn train_on can_train_on "
    "do_train learn output_with_loss",
    "0 or false: the assistant's turn is read and not learned; 1 or true: learned, as without it. Other values, and "
    "1 in a turn of somebody else, are refused",
)
MASKED = Meaning(
    "turn", "masked is_masked", "the reverse: true is not learned, as it is in turns of others; false is (torchtune)"
)

NUMBERS = Meaning(
    "turn",
    "turn turn_id turn_index turn_idx turn_number turn_no index idx message_index message_number order position seq "
    "seq_id sequence sequence_number step step_index number page page_index page_number page_no page_num image_index "
    "image_idx image_number frame frame_index frame_number frame_id call_index round round_id round_index round_number "
    "timestamp timestamps created created_at create_time created_time sent_at ts",
    "of turns, calls and images: counted as not used where they rise, refused where they give another order",
)
IDENTITIES = Meaning(
    "turn",
    "id message_id msg_id uuid node_id image_id img_id picture_id page_id",
    "of turns, calls and images: counted as not used; refused where they count from 0 or 1 in another order",
)
FOLLOWS = Meaning(
    "turn",
    "parent_id parent parent_uuid parent_message_id reply_to reply_to_id in_reply_to previous_id previous_message_id",
    "of turns, calls and images: which of them each follows; refused where that is not the one before it",
)

PART_TYPE = Meaning("part", "type block_type", "text, image, reasoning, call or result, in each maker's spelling")
PART_TEXT = Meaning("part", "text content value", "of a text")
PART_THINKING = Meaning("part", "thinking reasoning reasoning_text text content summary", "of the reasoning")
PART_THOUGHT = Meaning("part", "thought", "of a text: true, where it is reasoning (Gemini)")
PART_CLOSED = Meaning("part", "closed", "of the reasoning: false, where it was cut off, is refused")
PART_IMAGE = Meaning(
    "part",
    "image image_url input_image inline_data file_data url path base64 bytes source data file_name",
    "of an image; without any, it is the record's next one",
)
PART_INDEX = Meaning(
    "part", "index image_index idx image_idx img_idx", "of an image: which of the record's, counted from 0"
)
PART_ORDER = Meaning(
    "part", "order position seq sequence part_index", "counted as not used where they rise, else refused"
)
PART_INSIDE = Meaning(
    "part",
    "tool_use tool_result function_call function_response reasoning_content",
    "a call, a result or reasoning in an object of its own (Gemini, Bedrock)",
)
PART_RESULT = Meaning("part", "content output result response text", "of a result; what is no text is written as JSON")
PART_JSON = Meaning("part", "json value data", "a value that is written as JSON")
PART_ID = Meaning("part", "id tool_use_id tool_call_id call_id", "of a call or a result")
PART_NAME = Meaning("part", "name tool_name", "of a result: the function, where there is no id")

CALL_ID = Meaning("call", "call_id tool_call_id tool_use_id id", "what results name")
CALL_TYPE = Meaning("call", "type", "function, or refused")
CALL_FUNCTION = Meaning("call", "function", "holds name and arguments, or they stand beside it")
CALL_NAME = Meaning("call", "name tool_name function_name", "the function")
CALL_ARGUMENTS = Meaning("call", "arguments parameters args input", "an object or its JSON text; nothing means none")

INSTRUCTIONS = Meaning("setting", "custom_instructions system_prompt system", "the system turn")
SETTING_TOOLS = Meaning("setting", "xml_tools tools", "the tools")
PYTHON_TOOLS = Meaning("setting", "python_tools", "refused where it lists any: they are called by code")
THINKING_SETTING = Meaning("setting", "enable_thinking thinking", THINKING.becomes)
HARMLESS_SETTING = Meaning("setting", "add_generation_prompt tokenize return_dict", "counted as not used")

IMAGE_BYTES = Meaning("image", "bytes data base64", "the file, or its base64; a `path` beside it is only its name")
IMAGE_PATH = Meaning(
    "image",
    "path url file_name file_uri uri src file filename image_path local_path",
    "where the file is, if there are no bytes",
)
IMAGE_INSIDE = Meaning("image", "source s3_location", "an object with the bytes or the path (Bedrock)")
IMAGE_FORM = Meaning(
    "image", "type media_type mime_type format", "not needed where the bytes say it: base64, url, image/png and so on"
)

FIELDS = tuple(value for value in list(globals().values()) if isinstance(value, Meaning))
"""All rows, in the order of the lines above."""

MAPPABLE = tuple(dict.fromkeys(name for row in FIELDS if row.level in ("record", "turn") for name in row.names))
"""Names that ``--map`` may give."""

MADE = ("task", "variant", "difficulty", "answer", "sources", "construction", "seed", "index")
"""Fields of a record of ``make_visual_tasks.py``, which has all of them: how it was made, and nothing to learn."""
